"""Ends a replica whose raylet has died: Ray keeps such a worker alive while it has open calls."""

import asyncio
import os


def end_with_parent() -> None:
    """Let this process exit when its parent, the raylet, ends. Call this on the event loop."""
    try:
        parent = os.pidfd_open(os.getppid())
    except ProcessLookupError:
        os._exit(1)
    asyncio.get_running_loop().add_reader(parent, os._exit, 1)
