"""The outermost ASGI layer: gives each request an id, measures it, and logs one line at its end.

Times are taken as the bytes leave, so they are the client's latency. Nothing is parsed on the way:
a piece of a stream costs one clock reading, a count of its event ends and one histogram (1.6 µs in
all, measured on a shared core). The usage is read from the last two pieces after the end.
"""

import logging
import re
import time
import uuid

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.protocol.errors import UnknownModel
from serve_app.protocol.heartbeat import is_heartbeat
from serve_app.telemetry.context import begin_request
from serve_app.telemetry.metrics import CACHE_RESULTS, UNKNOWN_MODEL, GatewayMetrics

_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# Monitoring requests these every few seconds: their success is logged at DEBUG only.
_QUIET = {"/health", "/health/ready", "/metrics", "/admin/status", "/console/{path:path}"}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ID_HEADER, _IGNORED_HEADER = b"x-request-id", b"x-ignored-fields"
NO_MODEL, NO_ROUTE = "none", "unmatched"
_NOT_GENERATED = ("hit", "shared")  # kept, or generated for another request that counts it
_AVOIDED = b"switch=avoided"
_USAGE_KEY = b'"usage":'
_USAGE = re.compile(rb'"(prompt|completion|input|output)_tokens": ?(\d{1,9})')
_NO_TEXT_EVENTS = 2  # of a chat stream without usage: the role and [DONE]

logger = logging.getLogger("llm_backend.access")


class TelemetryMiddleware:
    """Adds response headers, counts each request, and writes its access line.

    Headers: `X-Request-Id` (the client's own, if it is harmless) and, if fields of the request
    were ignored, `X-Ignored-Fields`. Access line: route, status, outcome, time, and the facts of
    `context.py`.

    `outcome`: `complete`, `error` (also an error event in a stream that began with status 200),
    `left` (the client closed the connection), or `broken` (the answer was not finished; the
    metrics count it as an error).

    `is_behind_serve`: Serve's proxy gives an id to a request without one, and adds the id to the
    answer itself, a client's id even if it is not harmless. A second header would make most
    clients read "id, id".
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, is_behind_serve: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._is_behind_serve = is_behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._metrics, scope, receive, send, self._is_behind_serve)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            route = getattr(scope.get("route"), "path", None)  # never what the client wrote
            outcome = exchange.outcome()
            exchange.count(route or NO_ROUTE, outcome)
            exchange.log(scope["method"], route or "unknown", outcome)


class _Exchange:
    """Observes one request and its answer as they pass."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        scope: Scope,
        receive: Receive,
        send: Send,
        is_behind_serve: bool,
    ) -> None:
        self._metrics, self._receive, self._send = metrics, receive, send
        self._arrived_at = time.perf_counter()
        request_id = _client_id(scope) or uuid.uuid4().hex
        self._context = begin_request(request_id)
        self._own_headers = [] if is_behind_serve else [(_ID_HEADER, request_id.encode())]
        self._status = 0
        self._is_over = self._has_left = False
        self._is_stream = False
        self._headers: dict[bytes, bytes] = {}
        self._last = self._last_but_one = b""
        self._num_events = 0
        self._sent_at = 0.0
        self._between_pieces: Histogram | None = None  # of its model, once the stream has begun
        self._model = NO_MODEL

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                if self._is_stream:
                    self._measure_piece(body)
                self._last_but_one, self._last = self._last, body
            if not message.get("more_body", False):
                self._is_over = True  # before it is sent: a client may leave once it has it all
        elif message["type"] == "http.response.start":
            self._begin_answer(message)
            headers = [*message.get("headers", ()), *self._own_headers]
            if self._context.ignored_fields:
                headers.append((_IGNORED_HEADER, self._context.ignored_fields.encode()))
            message = {**message, "headers": headers}
        await self._send(message)

    def _begin_answer(self, message: Message) -> None:
        self._status = message["status"]
        self._headers = {name.lower(): value for name, value in message.get("headers", ())}
        kind = self._headers.get(b"content-type", b"")
        self._model = self._find_model()
        self._is_stream = (
            kind.startswith(b"text/event-stream")
            and self._model != NO_MODEL
            and self._cache_result() != "hit"
        )

    def _measure_piece(self, body: bytes) -> None:
        if is_heartbeat(body) or self._context.error_code:  # neither is text
            return
        now = time.perf_counter()
        if self._between_pieces:
            self._between_pieces.observe(now - self._sent_at)
        else:
            self._metrics.first_token.labels(self._model).observe(now - self._arrived_at)
            self._between_pieces = self._metrics.inter_token.labels(self._model)
        self._sent_at = now
        self._num_events += body.count(b"\n\n")

    def outcome(self) -> str:
        """Return how the request ended; see `TelemetryMiddleware`."""
        if self._is_over:
            has_failed = self._status >= 400 or self._context.error_code is not None
            return "error" if has_failed else "complete"
        return "left" if self._has_left else "broken"

    def log(self, method: str, route: str, outcome: str) -> None:
        """Write the request's access line."""
        is_quiet = outcome == "complete" and route in _QUIET
        fields = {
            "method": method if method in _METHODS else "unknown",
            "route": route,
            "status": self._status or None,
            "outcome": outcome,
            "total_ms": round((time.perf_counter() - self._arrived_at) * 1000, 1),
        }
        logger.log(logging.DEBUG if is_quiet else logging.INFO, "request", extra=fields)

    def count(self, route: str, outcome: str) -> None:
        """Count the finished request in the metrics."""
        metrics, context = self._metrics, self._context
        self._model = self._find_model()
        status = f"{self._status // 100}xx" if self._status else "none"
        if outcome == "broken":
            status, outcome = "5xx", "error"
        metrics.requests.labels(route, self._model, status, outcome).inc()
        if context.error_code:
            metrics.errors.labels(context.error_code).inc()
        if self._model in (NO_MODEL, UNKNOWN_MODEL):
            return
        if self._is_over:
            total_s = time.perf_counter() - self._arrived_at
            metrics.duration.labels(route, self._model).observe(total_s)
        if context.queued_s is not None:
            metrics.queue_wait.labels(self._model).observe(context.queued_s)
        self._count_cache()
        self._read_usage()
        if self._cache_result() not in _NOT_GENERATED:
            self._count_tokens()

    def _find_model(self) -> str:
        """Return the model from the request's context, else from the answer's `X-Model`."""
        if self._context.model is not None:
            return self._context.model
        if self._context.error_code == UnknownModel.code:
            return UNKNOWN_MODEL
        named = self._headers.get(b"x-model")
        return self._metrics.model_of(named.decode("latin-1")) if named else NO_MODEL

    def _cache_result(self) -> str | None:
        header = self._headers.get(b"x-cache")
        if header is None:
            return None
        result = header.partition(b";")[0].decode("latin-1")
        return result if result in CACHE_RESULTS else "other"

    def _count_cache(self) -> None:
        result = self._cache_result()
        if result is None:
            return
        self._metrics.cache_lookups.labels(self._model, result).inc()
        if result == "hit" and _AVOIDED in self._headers[b"x-cache"]:
            self._metrics.switches_avoided.labels(self._model).inc()

    def _read_usage(self) -> None:
        end = self._last_but_one + self._last
        at = end.rfind(_USAGE_KEY)
        usage: dict[bytes, bytes] = dict(_USAGE.findall(end, at)) if at >= 0 else {}
        if usage:
            context = self._context
            context.prompt_tokens = int(usage.get(b"prompt") or usage.get(b"input") or 0)
            context.completion_tokens = int(usage.get(b"completion") or usage.get(b"output") or 0)

    def _count_tokens(self) -> None:
        num_generated = self._context.completion_tokens
        if num_generated is None:
            num_generated = max(0, self._num_events - _NO_TEXT_EVENTS)
        self._metrics.prompt_tokens.labels(self._model).inc(self._context.prompt_tokens or 0)
        self._metrics.generated_tokens.labels(self._model).inc(num_generated)


def _client_id(scope: Scope) -> str | None:
    """Return the client's own request id, if it is harmless."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name.lower() == _ID_HEADER and _HARMLESS.fullmatch(text):
            return str(text)
    return None
