"""The kind of machine this is."""

import os
from functools import cache


@cache
def is_wsl() -> bool:
    """Whether this is Linux under Windows (WSL2)."""
    return "microsoft" in os.uname().release.lower()
