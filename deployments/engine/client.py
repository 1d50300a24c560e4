"""Speaks HTTP to an engine's private socket."""

from pathlib import Path
from typing import Any

import aiohttp


def engine_session(
    socket: Path, timeout_s: float | None, **connector: Any
) -> aiohttp.ClientSession:
    """A session whose requests name a path alone; each fails after `timeout_s`, if that is not
    None. `connector`: of `aiohttp.UnixConnector`."""
    return aiohttp.ClientSession(
        "http://engine",
        connector=aiohttp.UnixConnector(path=str(socket), **connector),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


async def is_healthy(session: aiohttp.ClientSession) -> bool:
    """Whether the engine says so itself: its server may outlive its core."""
    try:
        async with session.get("/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
