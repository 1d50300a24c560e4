"""Ends a replica whose raylet has died: Ray lets such a worker live on while it has calls open."""

import asyncio
import os


def end_with_parent() -> None:
    """Exit this process at once when its parent, the raylet, ends; call it on the event loop."""
    try:
        parent = os.pidfd_open(os.getppid())
    except ProcessLookupError:
        os._exit(1)
    asyncio.get_running_loop().add_reader(parent, os._exit, 1)
