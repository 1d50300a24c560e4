"""Tells on what kind of file system a folder lies, from /proc/self/mountinfo."""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
# How WSL2 (9p) and WSL1 (drvfs) show a disk of Windows.
_WINDOWS_DISK = {"9p", "v9fs", "drvfs"}


def filesystem_of(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the file system of `path`, as ext4 or 9p; None where it is not known. `path` need
    not exist."""
    found = _mount_of(path, mounts)
    return found[0] if found else None


def is_slow_filesystem(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether `path` lies on a disk of Windows that is shared with WSL, such as /mnt/c.

    Such a disk reads 90 to 250 MB/s (microsoft/WSL#4197), keeps little in Linux's page cache, and
    makes no Unix sockets (microsoft/WSL#5961).
    """
    found = _mount_of(path, mounts)
    return found is not None and (found[0] in _WINDOWS_DISK or found[1].startswith("drvfs"))


def _mount_of(path: Path, mounts: Path) -> tuple[str, str] | None:
    """The type and the source of the mount that `path` lies on. Of two mounts on one folder the
    later one counts."""
    path = path.expanduser().resolve()
    best: tuple[int, str, str] | None = None
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 5 or len(rest) < 2:
            continue
        folder = Path(_unescaped(fields[4]))
        is_above = folder == path or folder in path.parents
        if is_above and (best is None or len(folder.parts) >= best[0]):
            best = (len(folder.parts), rest[0], _unescaped(rest[1]))
    return best[1:] if best else None


def _unescaped(text: str) -> str:
    """The kernel writes a space as \\040."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
