"""One log line for each request, at its end, and a name for each request.

Plain ASGI, around everything: a stream passes through chunk by chunk, and a client that leaves is
seen as such.
"""

import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.observation import begin_observation

_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# Asked every few seconds by whoever watches: logged only when something is wrong.
_QUIET = {"/health", "/health/ready", "/metrics", "/admin/status", "/console/{path:path}"}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ID_HEADER, _IGNORED_HEADER = b"x-request-id", b"x-ignored-fields"

logger = logging.getLogger("llm_backend.access")


class AccessLog:
    """Gives each answer its `X-Request-Id` (the client's own, if that is harmless) and, where its
    request had fields left out, `X-Ignored-Fields`. Writes the request's line: route, status,
    outcome, time, and what else is known of it (`observation.py`).

    `outcome`: `complete`, `error` (also at the end of a stream that began with 200), `left` (the
    client did), or `broken` (an answer begun and not ended).

    `is_behind_serve`: Serve's proxy names a request that has no name yet, and puts the name on the
    answer itself, the client's also where it is not harmless; a second such header would make it
    "name, name" to most clients.
    """

    def __init__(self, app: ASGIApp, is_behind_serve: bool) -> None:
        self._app = app
        self._is_behind_serve = is_behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._is_behind_serve)
        try:
            await self._app(scope, request.receive, request.send)
        finally:
            request.log(scope)


class _Request:
    """What is seen of one request as it passes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, is_behind_serve: bool) -> None:
        self._receive, self._send = receive, send
        self._began = time.perf_counter()
        self._id = _given_id(scope) or uuid.uuid4().hex
        self._is_named = is_behind_serve
        self._observed = begin_observation(self._id)
        self._status = 0
        self._is_over = self._has_left = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", ())]
            if not self._is_named:
                headers.append((_ID_HEADER, self._id.encode()))
            if self._observed.ignored_fields:
                headers.append((_IGNORED_HEADER, self._observed.ignored_fields.encode()))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_over = True  # before it is sent: a client that has it all may leave
        await self._send(message)

    def log(self, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # never what the client wrote
        outcome = self._outcome()
        is_quiet = outcome == "complete" and route in _QUIET
        fields: dict[str, Any] = {
            "method": scope["method"] if scope["method"] in _METHODS else "unknown",
            "route": route,
            "status": self._status or None,
            "outcome": outcome,
            "total_ms": round((time.perf_counter() - self._began) * 1000, 1),
        }
        logger.log(logging.DEBUG if is_quiet else logging.INFO, "request", extra=fields)

    def _outcome(self) -> str:
        if self._is_over:
            has_failed = self._status >= 400 or self._observed.error_code is not None
            return "error" if has_failed else "complete"
        return "left" if self._has_left else "broken"


def _given_id(scope: Scope) -> str | None:
    """The client's own, if that is harmless."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name.lower() == _ID_HEADER and _HARMLESS.fullmatch(text):
            return str(text)
    return None
