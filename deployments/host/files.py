"""Replaces files as a whole: no reader sees half a file, also after a crash."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace the content of `path` by `text` in one step. It is on the disk when this returns.

    Raises:
        OSError: the text cannot be written; the file keeps its old content.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
