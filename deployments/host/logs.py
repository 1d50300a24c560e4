"""Writes this project's logs: one JSON object a line, in files that stay bounded.

A line holds `time` (UTC), `level`, `logger`, `event`, and the fields that `extra` or a filter gave
its record, such as `ticket` or `request_id`; an exception goes under `error` and `at`. Never a
prompt, an answer or a key: what clients send is not logged, and the text of an exception only where
it cannot quote a request. JSON escapes every control character, so nothing that a client sends
breaks a line.
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

FILE_BYTES = 10_000_000  # then a log is set aside as <name>.log.1, and that one as <name>.log.2
NUM_OLD_FILES = 2
_MAX_TEXT = 2000  # characters of one value
_MAX_FRAMES = 12
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUOTABLE = {"serve_app", "deployments", "ray", "aiohttp"}  # packages whose errors quote no request


class JsonLines(logging.Formatter):
    """A record as one JSON object; what `extra` holds becomes fields of it, Ray's own left out."""

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
    """What it is, and where from; its text where that cannot quote a request, as a ValueError's
    or a KeyError's may."""
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
    """A rotating file that goes on in the new one when another process has rotated it: a replica
    and its successor write side by side for a while."""

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
                self.stream = None  # how the base says that it is to be opened
        return bool(super().shouldRollover(record))


def write_to_file(
    home: Path, service: str, *, rotates: bool = True, context: logging.Filter | None = None
) -> None:
    """Send this process's log lines to `<home>/logs/<service>.log`: ours from `info` on, those of
    other packages from `warning` on.

    A file that cannot be written (disk full, read-only) costs lines, not the service.
    `rotates=False`: another part keeps it bounded, because other processes write there too.
    `context` adds fields to each record, as `context.RequestFields` does.
    """
    handler = rotating_file(log_path(home, service), rotates=rotates)
    handler.setFormatter(JsonLines())
    if context:
        handler.addFilter(context)
    logging.getLogger().addHandler(handler)
    logging.getLogger("llm_backend").setLevel(logging.INFO)


def rotating_file(path: Path, *, rotates: bool = True) -> logging.Handler:
    """A handler that appends to `path` and keeps it bounded; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        logging.getLogger("llm_backend").warning("no folder for logs: %r", exc)
    limit, kept = (FILE_BYTES, NUM_OLD_FILES) if rotates else (0, 0)
    return _SharedFile(path, maxBytes=limit, backupCount=kept, delay=True, encoding="utf-8")


def log_path(home: Path, service: str) -> Path:
    return home / paths.log(service)


def set_aside(path: Path) -> None:
    """Begin the log anew: what is there becomes `.1`, and that `.2`."""
    older = path.with_name(path.name + ".1")
    if older.exists():
        older.replace(path.with_name(path.name + ".2"))
    if path.exists():
        path.replace(older)


def keep_bounded(path: Path, limit_bytes: int = FILE_BYTES) -> bool:
    """Set a log aside that another process holds open for appending: it is copied to `.1` and cut
    to nothing, and that process goes on writing at its new beginning. Whether that was done.

    What is written between the two steps is lost; on a full disk, the copy too.
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
