"""Replaces files as a whole: no reader, and no start after a crash, meets half a file."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Make `text` the content of `path` in one step, on the disk when this returns.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
