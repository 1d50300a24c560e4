"""HTTP to an engine's private socket."""

from pathlib import Path

import aiohttp


def engine_session(socket: Path, timeout_s: float | None) -> aiohttp.ClientSession:
    """A session for a question or two; each fails after `timeout_s`, if that is not None."""
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(socket)),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )
