"""Sends requests to the backend within a deadline, and retries them after `Retry-After`."""

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

_MAX_CONNECTIONS = 200  # the backend queues 256; further requests wait here, without a socket each
_CONNECT_S = 10.0
# Less than any server's: a request is lost if the server closes its connection just then.
_KEEP_ALIVE_S = 2.0
_JITTER = 0.25  # so that a hundred requests refused together do not return together
# Not retried: a failure that the caller must see, and a refusal that the caller asked for.
_FINAL_CODES = {"model_load_failed", "model_not_resident"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Clock:
    """The time and how to wait; tests replace it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0, _JITTER))  # noqa: S311


class Deadline:
    """The time at which one call must have ended."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self.clock, self.timeout_s = clock, timeout_s
        self._ends_at = clock.now() + timeout_s

    @property
    def left_s(self) -> float:
        return self._ends_at - self.clock.now()

    async def bound(self, work: Awaitable[_T]) -> _T:
        """Return the result of `work`. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self.left_s):
                return await work
        except TimeoutError as exc:
            raise DeadlineExceeded(f"No answer within {self.timeout_s:g} s.") from exc


class Transport:
    """A pool of connections to one backend with one key."""

    def __init__(self, base_url: str, key: str | None, clock: Clock) -> None:
        self.base_url, self.clock = base_url, clock
        url = httpx.URL(base_url)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),  # a Deadline limits the rest
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_S),
            verify=url.scheme == "https",  # with plain HTTP, the certificates need not be read
            trust_env=not _is_loopback(url.host),  # no HTTP proxy for this machine's own server
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
        """Send a request and return the JSON object of the answer.

        Raises:
            Unreachable, DeadlineExceeded, APIError
        """
        async with self.open(method, path, deadline, json=json, headers=headers) as response:
            body = await self._read(response, deadline)
        with suppress(ValueError):
            answer = json_module.loads(body)
            if isinstance(answer, dict):
                return answer
        message = f"{self.base_url} did not answer with a JSON object; is it an llm-backend?"
        raise APIError(message, response.status_code)

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
        """Yield a successful response whose body has not been read; raises like `ask`."""
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
        """Return the seconds to wait before a retry, None for no retry."""
        if error.status not in (429, 503) or error.code in _FINAL_CODES:
            return None
        if error.retry_after_s is None:
            return None
        return error.retry_after_s * (1 + self.clock.jitter())


@contextmanager
def translated(base_url: str) -> Iterator[None]:
    """Turn httpx's errors into Unreachable."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise Unreachable(f"Nothing answers at {base_url}.") from exc
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise Unreachable(f"The connection to {base_url} broke.") from exc


def _is_loopback(host: str) -> bool:
    is_here = host in ("localhost", "::1", "0.0.0.0")  # noqa: S104  an address to connect to
    return is_here or host.startswith("127.")
