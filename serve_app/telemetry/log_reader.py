"""Reads the last lines of log files, and the lines that are added to them.

A log may be rotated at any time, in either of two ways: a new file takes its name, or the same
file is truncated (see `deployments/host/logs.py`). Calls here block only on the disk.
"""

import os
import re
from pathlib import Path
from typing import BinaryIO

from deployments.host.logs import log_path

SERVICES = ("gateway", "switchboard", "serve", "standby", "redis")  # besides the models

_BLOCK_BYTES = 65_536
_MAX_LINE_BYTES = 8192
_MAX_READ_BYTES = 1 << 20  # per call
# Colours, cursor movements and all other control characters that a terminal would act on.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def last_lines(path: Path, num_lines: int) -> list[str]:
    """Return the last lines of a log, none if there is no log. Raises OSError."""
    follower = Follower(path, num_lines)
    follower.close()
    return (follower.past + follower.end_line())[-num_lines:] if num_lines else []


class Follower:
    """Reads the lines added to a log after its present end.

    `past` holds the last lines before that end; if the log has just been rotated, some of them
    come from the older file.
    """

    def __init__(self, path: Path, num_lines: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""  # an unfinished line
        self._open()
        past = self._go_to_end(num_lines)
        if len(past) < num_lines:
            older = path.with_name(path.name + ".1")
            if older.exists():
                past = _tail(older.read_bytes(), num_lines - len(past)) + past
        self.past = [_clean(line) for line in past]

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def new_lines(self) -> list[str]:
        """Return the lines added since the last call, without an unfinished one."""
        lines = self._read()
        if self._is_replaced():
            while more := self._read():  # lines written just before the rotation
                lines += more
            self.close()
            lines += self._take_rest()
            self._open()
            lines += self._read()
        return [_clean(line) for line in lines]

    def _open(self) -> None:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            self._file = None

    def _is_replaced(self) -> bool:
        """Whether another file than the open one now has the log's name."""
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False  # during a rotation: the new file does not exist yet
        return self._file is None or not os.path.samestat(named, os.fstat(self._file.fileno()))

    def _read(self) -> list[bytes]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # truncated
            self._file.seek(0)
            self._rest = b""
        *lines, self._rest = (self._rest + self._file.read(_MAX_READ_BYTES)).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines += self._take_rest()
        return lines

    def end_line(self) -> list[str]:
        """Return the unfinished line, if there is one, without waiting for its end."""
        return [_clean(line) for line in self._take_rest()]

    def _go_to_end(self, num_lines: int) -> list[bytes]:
        """Return the last finished lines, and leave the file at its end."""
        if self._file is None:
            return []
        position = end = self._file.seek(0, os.SEEK_END)
        data = b""
        while position and data.count(b"\n") <= num_lines:
            size = min(_BLOCK_BYTES, position)
            position -= size
            self._file.seek(position)
            data = self._file.read(size) + data
        self._file.seek(end)
        whole, newline, self._rest = data.rpartition(b"\n")
        return _tail(whole + newline, num_lines)

    def _take_rest(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def paths_of(service: str, home: Path, models: list[str]) -> dict[str, Path]:
    """Return the log file of `service`, or of each service for `all`; empty if it is unknown."""
    known = [*SERVICES, *models]
    chosen = known if service == "all" else [name for name in known if name == service]
    return {name: log_path(home, name) for name in chosen}


def _tail(data: bytes, num_lines: int) -> list[bytes]:
    lines = data.split(b"\n")[:-1]  # the last element, after the final newline, is empty
    return lines[-num_lines:] if num_lines else []


def _clean(line: bytes) -> str:
    """Return a line as text without control characters; of a progress bar, its last state."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    return _CONTROL.sub("", shown[:_MAX_LINE_BYTES].decode(errors="replace"))
