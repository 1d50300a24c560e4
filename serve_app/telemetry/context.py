"""Holds the facts about one request: each is set once, by the code that learns it.

The access line and every other log line of the request carry them, and the metrics count by them.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from serve_app.protocol.errors import BackendError


@dataclass(slots=True)
class RequestContext:
    """The facts about one request; None means unknown or not applicable."""

    request_id: str | None = None
    model: str | None = None  # the requested model, if it exists
    epoch: int | None = None  # the epoch in which the request was admitted
    queued_s: float | None = None  # from arrival to admission
    error_code: str | None = None  # of the error sent to the client
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ignored_fields: str | None = None  # fields left out of its body, for `X-Ignored-Fields`

    def note_error(self, error: BackendError) -> None:
        """Record the error that is about to be sent to the client."""
        self.error_code = error.code or error.type

    def fields(self) -> dict[str, Any]:
        """Return the known facts under their names in a log line."""
        known = {
            "request_id": self.request_id,
            "model": self.model,
            "epoch": self.epoch,
            "queue_ms": None if self.queued_s is None else round(self.queued_s * 1000, 1),
            "error_code": self.error_code,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return {name: value for name, value in known.items() if value is not None}


_current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


def begin_request(request_id: str) -> RequestContext:
    """Start a new context, for this task and the tasks that it starts."""
    context = RequestContext(request_id)
    _current.set(context)
    return context


def request_context() -> RequestContext:
    """Return the current request's context; outside a request, a throwaway one."""
    return _current.get() or RequestContext()


class RequestFields(logging.Filter):
    """Adds the facts about the current request to each log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in request_context().fields().items():
            vars(record).setdefault(name, value)
        return True
