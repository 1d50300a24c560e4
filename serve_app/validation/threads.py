"""Runs work on large bodies in a thread, beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

_SMALL_BYTES = 16_384  # less than a millisecond of checking, whatever they are
_threads = ThreadPoolExecutor(2, "aside")
_T = TypeVar("_T")


async def in_thread_if_large(num_bytes: int, work: Callable[[], _T]) -> _T:
    """The result of `work` on so many bytes; on many of them it runs in one of two threads, so that
    other requests and streams go on meanwhile."""
    if num_bytes <= _SMALL_BYTES:
        return work()
    run = copy_context().run
    return await asyncio.get_running_loop().run_in_executor(_threads, run, work)
