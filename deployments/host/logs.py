"""Writes this project's logs: one JSON object on each line, in files of bounded size.

A line holds `time` (UTC), `level`, `logger`, `event`, and the fields that `extra` or a filter gave
the record, such as `ticket` or `request_id`; an exception is under `error` and `at`. A line never
holds a prompt, an answer or a key: what clients send is not logged, and the text of an exception
only if it cannot quote a request. JSON escapes control characters, so no text can break a line.
"""

import json
import logging
import os
import shutil
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from deployments.settings import paths

FILE_BYTES = 10_000_000  # a longer log is renamed to <name>.log.1, and that to <name>.log.2
NUM_OLD_FILES = 2
_MAX_TEXT = 2000  # characters in one value
_MAX_FRAMES = 12
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUOTABLE = {"serve_app", "deployments", "ray", "aiohttp"}  # their errors quote no request


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object, with the fields in `extra` except Ray's own."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD and k[0] != "_"}
        if record.exc_info and record.exc_info[1]:
            line |= _error_fields(record.exc_info[1])
        return json.dumps({key: _short(value) for key, value in line.items()}, default=repr)


def _error_fields(error: BaseException) -> dict[str, Any]:
    """The error's class and origin, and its text if that cannot quote a request. The text of a
    ValueError or a KeyError may."""
    kind = type(error)
    is_quotable = isinstance(error, OSError) or kind.__module__.partition(".")[0] in _QUOTABLE
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return {
        "error": f"{kind.__name__}: {error}" if is_quotable else kind.__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return value[:_MAX_TEXT] + "…"
    return value


class _SharedFile(RotatingFileHandler):
    """A rotating file that is opened again when another process has rotated it: a replica and its
    successor write into the same file for a while."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        if self.stream:
            try:
                is_same = os.path.samestat(
                    os.stat(self.baseFilename), os.fstat(self.stream.fileno())
                )
            except FileNotFoundError:
                is_same = False
            if not is_same:
                self.stream.close()
                self.stream = None  # the base class then opens the file
        return bool(super().shouldRollover(record))


def write_to_file(
    home: Path, service: str, *, rotates: bool = True, context: logging.Filter | None = None
) -> None:
    """Write this process's log lines to `<home>/logs/<service>.log`: ours from `info` up, those of
    other packages from `warning` up.

    If the file cannot be written (disk full, read-only), lines are lost and the service goes on.
    With `rotates=False`, `keep_bounded` bounds the file, because other processes write to it too.
    `context` adds fields to each record, as `context.RequestFields` does.
    """
    handler = rotating_file(log_path(home, service), rotates=rotates)
    handler.setFormatter(JsonLines())
    if context:
        handler.addFilter(context)
    logging.getLogger().addHandler(handler)
    logging.getLogger("llm_backend").setLevel(logging.INFO)


def rotating_file(path: Path, *, rotates: bool = True) -> logging.Handler:
    """A handler that appends to `path` and bounds its size. Makes the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        logging.getLogger("llm_backend").warning("cannot make the folder for logs: %r", exc)
    limit, kept = (FILE_BYTES, NUM_OLD_FILES) if rotates else (0, 0)
    return _SharedFile(path, maxBytes=limit, backupCount=kept, delay=True, encoding="utf-8")


def log_path(home: Path, service: str) -> Path:
    return home / paths.log(service)


def set_aside(path: Path) -> None:
    """Rename the log to `.1`, and the old `.1` to `.2`; the next line begins a new file."""
    older = path.with_name(path.name + ".1")
    if older.exists():
        older.replace(path.with_name(path.name + ".2"))
    if path.exists():
        path.replace(older)


def keep_bounded(path: Path, limit_bytes: int = FILE_BYTES) -> bool:
    """Bound a log that another process holds open for appending: if it is longer than
    `limit_bytes`, copy it to `.1` and empty it. Returns whether it was emptied.

    Lines written between the two steps are lost; on a full disk, all lines are.
    """
    older = path.with_name(path.name + ".1")
    try:
        if path.stat().st_size <= limit_bytes:
            return False
        if older.exists():
            older.replace(path.with_name(path.name + ".2"))
        try:
            shutil.copyfile(path, older)
        except OSError:
            older.unlink(missing_ok=True)
        os.truncate(path, 0)
    except OSError:
        return False
    return True
