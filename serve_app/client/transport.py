"""Sends requests with a deadline, and again when the server says when."""

import asyncio
import json as json_module
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from serve_app.client.errors import APIError, DeadlineExceeded, Unreachable, error_of

_MAX_CONNECTIONS = 200  # the backend queues 256; more of ours wait here, without a socket each
_CONNECT_S = 10.0
_KEEP_ALIVE_S = 2.0  # less than any server's: a connection it closes just now loses a request
_JITTER = 0.25  # so that a hundred that were sent away together do not come back together
# Not sent again: a fault that a person has to see, and a refusal that the caller asked for.
_FINAL_CODES = {"model_load_failed", "model_not_resident"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Clock:
    """The time, and waiting for it; another one in tests."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0, _JITTER))  # noqa: S311


class Deadline:
    """The end of one call's time."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self.clock, self.timeout_s = clock, timeout_s
        self._ends_at = clock.now() + timeout_s

    @property
    def left_s(self) -> float:
        return self._ends_at - self.clock.now()

    async def bound(self, work: Awaitable[_T]) -> _T:
        """The outcome of `work`. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self.left_s):
                return await work
        except TimeoutError as exc:
            raise DeadlineExceeded(f"No answer within {self.timeout_s:g} s.") from exc


class Transport:
    """A connection pool with one key."""

    def __init__(self, base_url: str, key: str | None, clock: Clock) -> None:
        self.base_url, self.clock = base_url, clock
        url = httpx.URL(base_url)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),  # a deadline bounds the rest
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_S),
            verify=url.scheme == "https",  # saves reading the certificates where none is met
            trust_env=not _is_loopback(url.host),  # no proxy on the way to this machine
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        json: object = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that the backend answers with.

        Raises:
            Unreachable, DeadlineExceeded, APIError
        """
        async with self.open(method, path, deadline, json=json, headers=headers) as response:
            body = await self._read(response, deadline)
        with suppress(ValueError):
            answer = json_module.loads(body)
            if isinstance(answer, dict):
                return answer
        raise APIError(f"{self.base_url} does not answer as an llm-backend.", response.status_code)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        json: object = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """A successful response whose body has not been read; raises like `ask`."""
        response = await self._send(method, path, deadline, json, headers)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        json: object,
        headers: dict[str, str] | None,
    ) -> httpx.Response:
        while True:
            request = self._http.build_request(method, path, json=json, headers=headers)
            with translated(self.base_url):
                response = await deadline.bound(self._http.send(request, stream=True))
            if response.is_success:
                return response
            try:
                body = await self._read(response, deadline)
                error = error_of(response.status_code, response.headers, body)
            finally:
                await response.aclose()
            pause_s = self._pause_s(error)
            if pause_s is None or pause_s >= deadline.left_s:
                raise error
            await self.clock.sleep(pause_s)

    async def _read(self, response: httpx.Response, deadline: Deadline) -> bytes:
        with translated(self.base_url):
            return await deadline.bound(response.aread())

    def _pause_s(self, error: APIError) -> float | None:
        """How long to wait before the request is sent again; None: it is not."""
        if error.status not in (429, 503) or error.code in _FINAL_CODES:
            return None
        if error.retry_after_s is None:
            return None
        return error.retry_after_s * (1 + self.clock.jitter())


@contextmanager
def translated(base_url: str) -> Iterator[None]:
    """Turns httpx's errors into Unreachable."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise Unreachable(f"Nothing answers at {base_url}.") from exc
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise Unreachable(f"The connection to {base_url} broke.") from exc


def _is_loopback(host: str) -> bool:
    is_here = host in ("localhost", "::1", "0.0.0.0")  # noqa: S104  an address to connect to
    return is_here or host.startswith("127.")
