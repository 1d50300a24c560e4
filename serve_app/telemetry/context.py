"""The current request's context: set where a fact becomes known, read by logs and metrics.

The access line and every other log line of the request carry it, and the metrics count by it.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from serve_app.protocol.errors import BackendError


@dataclass(slots=True)
class RequestContext:
    """One request's; None is not known, or not so."""

    request_id: str | None = None
    model: str | None = None  # it is for; one that exists
    epoch: int | None = None  # in which it was admitted
    queued_s: float | None = None  # from arrival to admission
    error_code: str | None = None  # of the error that its client is told
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ignored_fields: str | None = None  # of its body, as its client is told

    def note_error(self, error: BackendError) -> None:
        """The client is about to be told this one."""
        self.error_code = error.code or error.type

    def fields(self) -> dict[str, Any]:
        """What is known, as a log line names it."""
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


_current: ContextVar[RequestContext | None] = ContextVar("observation", default=None)


def begin_request(request_id: str) -> RequestContext:
    """From here on `request_context` is this one, in this task and those that it starts."""
    observed = RequestContext(request_id)
    _current.set(observed)
    return observed


def request_context() -> RequestContext:
    """The current request's context; outside a request, a throwaway one."""
    return _current.get() or RequestContext()


class RequestFields(logging.Filter):
    """Adds what is known of the current request to each log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in request_context().fields().items():
            vars(record).setdefault(name, value)
        return True
