"""The ASGI layer around the application that measures each of its requests.

Latency is what the client gets: times are taken as bytes leave. Nothing is parsed on the way: a
piece of a stream costs a clock, a count of its line ends and one histogram (1.6 µs in all, measured
on a shared core), and the usage is read from the last two pieces when all is over.
"""

import re
import time

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import UnknownModel
from serve_app.heartbeat import is_heartbeat
from serve_app.metrics import CACHE_RESULTS, UNKNOWN_MODEL, GatewayMetrics
from serve_app.observation import observation

NO_MODEL, NO_ROUTE = "none", "unmatched"
_NOT_MADE = ("hit", "shared")  # given again, or made for another request that counts it
_AVOIDED = b"switch=avoided"
_USAGE_KEY = b'"usage":'
_USAGE = re.compile(rb'"(prompt|completion|input|output)_tokens": ?(\d{1,9})')
_NO_TEXT_EVENTS = 2  # of a chat stream without a usage: the role, and [DONE]


class Measuring:
    """The ASGI layer around the application that measures each of its requests."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._metrics, send)
        try:
            await self._app(scope, receive, exchange.send)
        except Exception:
            exchange.status = 500  # which the layer outside of this one answers
            exchange.is_over = True
            raise
        finally:
            exchange.count(getattr(scope.get("route"), "path", NO_ROUTE))


class _Exchange:
    """One request, as its answer passes."""

    def __init__(self, metrics: GatewayMetrics, send: Send) -> None:
        self._metrics, self._send = metrics, send
        self._observed = observation()
        self._arrived_at = time.perf_counter()
        self.status = 0
        self.is_over = False
        self._is_stream = False
        self._headers: dict[bytes, bytes] = {}
        self._last = self._last_but_one = b""
        self._num_events = 0
        self._sent_at = 0.0
        self._between_pieces: Histogram | None = None  # its model's, once the stream has begun
        self._model = NO_MODEL

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                if self._is_stream:
                    self._measure_piece(body)
                self._last_but_one, self._last = self._last, body
            if not message.get("more_body", False):
                self.is_over = True
        elif message["type"] == "http.response.start":
            self._begin_answer(message)
        await self._send(message)

    def _begin_answer(self, message: Message) -> None:
        self.status = message["status"]
        self._headers = {name.lower(): value for name, value in message.get("headers", ())}
        kind = self._headers.get(b"content-type", b"")
        self._model = self._find_model()
        self._is_stream = (
            kind.startswith(b"text/event-stream")
            and self._model != NO_MODEL
            and self._cache_result() != "hit"
        )

    def _measure_piece(self, body: bytes) -> None:
        if is_heartbeat(body) or self._observed.error_code:  # heartbeats and errors are no text
            return
        now = time.perf_counter()
        if self._between_pieces:
            self._between_pieces.observe(now - self._sent_at)
        else:
            self._metrics.first_token.labels(self._model).observe(now - self._arrived_at)
            self._between_pieces = self._metrics.inter_token.labels(self._model)
        self._sent_at = now
        self._num_events += body.count(b"\n\n")

    def count(self, route: str) -> None:
        """The request is over, however it ended."""
        metrics, observed = self._metrics, self._observed
        self._model = self._find_model()
        has_failed = self.status >= 400 or observed.error_code is not None
        outcome = "left" if not self.is_over else "error" if has_failed else "complete"
        status = f"{self.status // 100}xx" if self.status else "none"
        metrics.requests.labels(route, self._model, status, outcome).inc()
        if observed.error_code:
            metrics.errors.labels(observed.error_code).inc()
        if self._model in (NO_MODEL, UNKNOWN_MODEL):
            return
        if self.is_over:
            total_s = time.perf_counter() - self._arrived_at
            metrics.duration.labels(route, self._model).observe(total_s)
        if observed.queued_s is not None:
            metrics.queue_wait.labels(self._model).observe(observed.queued_s)
        self._count_cache()
        self._read_usage()
        if self._cache_result() not in _NOT_MADE:
            self._count_tokens()

    def _find_model(self) -> str:
        """Named by those who answer; for an answer from the cache, by its header."""
        if self._observed.model is not None:
            return self._observed.model
        if self._observed.error_code == UnknownModel.code:
            return UNKNOWN_MODEL
        named = self._headers.get(b"x-model")
        return self._metrics.model_of(named.decode("latin-1")) if named else NO_MODEL

    def _cache_result(self) -> str | None:
        told = self._headers.get(b"x-cache")
        if told is None:
            return None
        result = told.partition(b";")[0].decode("latin-1")
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
            observed = self._observed
            observed.prompt_tokens = int(usage.get(b"prompt") or usage.get(b"input") or 0)
            observed.completion_tokens = int(usage.get(b"completion") or usage.get(b"output") or 0)

    def _count_tokens(self) -> None:
        made = self._observed.completion_tokens
        if made is None:
            made = max(0, self._num_events - _NO_TEXT_EVENTS)
        self._metrics.prompt_tokens.labels(self._model).inc(self._observed.prompt_tokens or 0)
        self._metrics.generated_tokens.labels(self._model).inc(made)
