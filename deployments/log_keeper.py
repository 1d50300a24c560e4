"""Keeps the logs bounded that processes write which know nothing of rotation."""

import asyncio
from pathlib import Path

from serve_app import journal
from serve_app.settings import Settings

_PERIOD_S = 30.0


async def keep_logs_bounded(settings: Settings) -> None:
    """Look after the engines' logs, and those of Serve, the standby and Redis, until cancelled."""
    names = [*settings.models, "serve", "standby", "redis"]
    paths = [journal.log_path(Path(settings.home), name) for name in names]
    while True:
        for path in paths:
            await asyncio.to_thread(journal.keep_bounded, path)
        await asyncio.sleep(_PERIOD_S)
