"""Runs work on large bodies in a thread, so that it does not block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

_SMALL_BYTES = 16_384  # checking so many bytes takes less than a millisecond, whatever they contain
_threads = ThreadPoolExecutor(2, "large-body")
_T = TypeVar("_T")


async def in_thread_if_large(num_bytes: int, work: Callable[[], _T]) -> _T:
    """Return the result of `work`, which handles `num_bytes` bytes.

    If they are many, it runs in one of two threads, and other requests and streams go on meanwhile.
    """
    if num_bytes <= _SMALL_BYTES:
        return work()
    run = copy_context().run
    return await asyncio.get_running_loop().run_in_executor(_threads, run, work)
