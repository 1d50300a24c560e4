"""Reads the last lines of a log, and the lines that are added.

Files may be rotated at any time, in both ways that there are: another file takes the name, or the
same file begins anew (see `logs.py`). Nothing here blocks but on the disk.
"""

import os
import re
from pathlib import Path
from typing import BinaryIO

from deployments.host.logs import log_path

SERVICES = ("gateway", "switchboard", "serve", "standby", "redis")  # besides the models

_BLOCK_BYTES = 65_536
_MAX_LINE_BYTES = 8192
_MAX_READ_BYTES = 1 << 20  # at one look
# Colours, cursor movements, and whatever else a terminal would obey.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The last lines of a log; of no log, none. Raises OSError where it cannot be read."""
    follower = Follower(path, num_lines)
    follower.close()
    return (follower.past + follower.end_line())[-num_lines:] if num_lines else []


class Follower:
    """Reads what is added to a log, from its present end on; `past` are the lines before that,
    from the file that was set aside too where the log has just begun anew."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""  # a line that is not ended yet
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
        """The lines added since the last call; a line that is not ended yet waits for its end."""
        lines = self._read()
        if self._is_replaced():
            while more := self._read():  # what came just before
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
        """Whether the name belongs to a file that is not open here."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False  # between two: the new one is not there yet
        return self._file is None or not os.path.samestat(there, os.fstat(self._file.fileno()))

    def _read(self) -> list[bytes]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # it began anew
            self._file.seek(0)
            self._rest = b""
        *lines, self._rest = (self._rest + self._file.read(_MAX_READ_BYTES)).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines += self._take_rest()
        return lines

    def end_line(self) -> list[str]:
        """The line that is not ended yet, if there is one; who calls this waits no longer."""
        return [_clean(line) for line in self._take_rest()]

    def _go_to_end(self, num_lines: int) -> list[bytes]:
        """The last whole lines."""
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
    """Service -> its log; those of all for `all`. Empty: there is no such service."""
    known = [*SERVICES, *models]
    chosen = known if service == "all" else [name for name in known if name == service]
    return {name: log_path(home, name) for name in chosen}


def _tail(data: bytes, num_lines: int) -> list[bytes]:
    lines = data.split(b"\n")[:-1]  # after the last newline there is nothing
    return lines[-num_lines:] if num_lines else []


def _clean(line: bytes) -> str:
    """A line as text that moves no cursor; of a progress bar, what it showed last."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    return _CONTROL.sub("", shown[:_MAX_LINE_BYTES].decode(errors="replace"))
