"""Keeps a failing, slow or unreachable store from delaying requests: its look-ups are misses."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from serve_app.cache.stores import Store, StoreFailed

_NUM_FAILURES = 3  # one late reply proves nothing: this process itself may have been busy
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
_SET_TIMEOUT_S = 1.0  # longer than a look-up's: no request waits for `set`

logger = logging.getLogger("llm_backend.cache")

_T = TypeVar("_T")


@dataclass
class Circuit:
    """A circuit breaker: decides whether to call a store. All times are seconds of one clock.

    It opens after `_NUM_FAILURES` failures in a row. While open it lets one call through after
    each pause; each failure doubles the pause, and the first success closes the circuit.
    """

    num_failures: int = 0
    pause_s: float = _FIRST_PAUSE_S
    next_try_at: float | None = None  # None: the circuit is closed, all calls pass

    @property
    def is_open(self) -> bool:
        return self.next_try_at is not None

    def may_try(self, now: float) -> bool:
        if self.next_try_at is None:
            return True
        if now < self.next_try_at:
            return False
        self.next_try_at = now + self.pause_s  # other calls wait while this one tries
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
    """Turns a store's failures, and look-ups longer than `timeout_s`, into misses."""

    def __init__(self, store: Store, timeout_s: float) -> None:
        self.store = store
        self.num_errors = 0
        self.circuit = Circuit()
        self._timeout_s = timeout_s

    async def get(self, key: str) -> bytes | None:
        return await self._try(lambda: self.store.get(key), self._timeout_s)

    async def set(self, key: str, value: bytes) -> bool:
        """Store a value; return whether the store kept it."""

        async def put() -> bool:
            await self.store.set(key, value)
            return True

        return await self._try(put, _SET_TIMEOUT_S) or False

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
            logger.info("the response cache's store works again")
        self.circuit.succeeded()
        return result

    def _note_failure(self, exc: Exception) -> None:
        self.num_errors += 1
        was_open = self.circuit.is_open
        self.circuit.failed(time.monotonic())
        if self.circuit.is_open and not was_open:
            logger.warning(
                "the response cache's store is unavailable (%s): no answer is cached until it "
                "works again",
                _name(exc),
            )


def _name(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
