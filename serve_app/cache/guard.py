"""Makes a store that fails, is slow or is away cost next to nothing: answers are generated anew."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from serve_app.cache.stores import Store, StoreFailed

_NUM_FAILURES = 3  # one late answer is no sign: this process itself may have been busy
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
_STORE_S = 1.0  # a store may take this long: no request waits for it

logger = logging.getLogger("llm_backend.cache")

_T = TypeVar("_T")


@dataclass
class Circuit:
    """Whether a store is worth asking; times are a clock's seconds.

    It opens after some failures in a row. Then one call is let through after each pause, which
    doubles, and the first that succeeds closes it.
    """

    num_failures: int = 0
    pause_s: float = _FIRST_PAUSE_S
    next_try_at: float | None = None  # None: all calls pass

    @property
    def is_open(self) -> bool:
        return self.next_try_at is not None

    def may_try(self, now: float) -> bool:
        if self.next_try_at is None:
            return True
        if now < self.next_try_at:
            return False
        self.next_try_at = now + self.pause_s  # for the others, while this one tries
        return True

    def succeeded(self) -> None:
        self.num_failures, self.pause_s, self.next_try_at = 0, _FIRST_PAUSE_S, None

    def failed(self, now: float) -> None:
        self.num_failures += 1
        if self.next_try_at is not None:
            self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        if self.num_failures >= _NUM_FAILURES:
            self.next_try_at = now + self.pause_s


class GuardedStore:
    """A store whose failures are misses, within `timeout_s`."""

    def __init__(self, store: Store, timeout_s: float) -> None:
        self.store = store
        self.num_errors = 0
        self.circuit = Circuit()
        self._timeout_s = timeout_s

    async def get(self, key: str) -> bytes | None:
        return await self._try(lambda: self.store.get(key), self._timeout_s)

    async def set(self, key: str, value: bytes) -> bool:
        """Whether it is kept."""

        async def put() -> bool:
            await self.store.set(key, value)
            return True

        return await self._try(put, _STORE_S) or False

    async def _try(self, call: Callable[[], Awaitable[_T]], timeout_s: float) -> _T | None:
        if not self.circuit.may_try(time.monotonic()):
            return None
        try:
            async with asyncio.timeout(timeout_s):
                result = await call()
        except (StoreFailed, TimeoutError) as exc:
            self._note_failure(exc)
            return None
        if self.circuit.is_open:
            logger.info("the cache's store answers again")
        self.circuit.succeeded()
        return result

    def _note_failure(self, exc: Exception) -> None:
        self.num_errors += 1
        was_open = self.circuit.is_open
        self.circuit.failed(time.monotonic())
        if self.circuit.is_open and not was_open:
            logger.warning("the cache's store is away (%s): nothing is cached", _name(exc))


def _name(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
