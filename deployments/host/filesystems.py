"""Tells on what kind of file system a folder lies, from /proc/self/mountinfo."""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# What a virtual machine shares of its host; WSL2 shows the disks of Windows as 9p.
_SHARED = {"9p", "v9fs", "drvfs"}
_OF_WINDOWS = "drvfs"  # in a mount's type, source or options


def filesystem_of(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system of `path`, as ext4 or 9p; None where it is not known. `path` need
    not exist."""
    return _mount_of(path, mounts)[0]


def is_slow_filesystem(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether `path` lies on a disk that the host shares, such as /mnt/c under WSL2.

    It reads 90 to 250 MB/s (microsoft/WSL#4197), and keeps little in Linux's page cache.
    """
    return _mount_of(path, mounts)[0] in _SHARED or is_windows_disk(path, mounts)


def is_windows_disk(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether `path` lies on a disk of Windows, where no Unix socket can be made
    (microsoft/WSL#5961)."""
    return any(_OF_WINDOWS in (text or "") for text in _mount_of(path, mounts))


def _mount_of(path: Path, mounts: Path) -> tuple[str | None, str]:
    """The type of the mount that `path` lies on, and its source with its options. Of two mounts on
    one folder the later one counts."""
    path = path.expanduser().resolve()
    depth = 0
    found: tuple[str | None, str] = (None, "")
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 5 or len(rest) < 2:
            continue
        folder = Path(_unescaped(fields[4]))
        if (folder == path or folder in path.parents) and len(folder.parts) >= depth:
            depth, found = len(folder.parts), (rest[0], " ".join(rest[1:]))
    return found


def _unescaped(text: str) -> str:
    """The kernel writes a space as \\040."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
