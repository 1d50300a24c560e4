"""Reads the time of a log line, in the formats of the programs that write the logs."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Ours (JSON, UTC), and Ray's and Serve's (local time).
_FULL = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,]\d+)?(Z|[+-]\d\d:\d\d)?")
_VLLM = re.compile(r"\b[A-Z]+ (\d\d-\d\d) (\d\d:\d\d:\d\d) ")  # no year, local time
_SEARCHED = 200  # characters at the line's beginning that are searched for a time


def moment(text: str, now: datetime) -> datetime:
    """Read a `--since` value: `90s`, `10m`, `2h` or `1d` ago, a time of day, or a date with a time.

    Raises:
        ValueError: the text has none of these forms.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return now - timedelta(seconds=float(ago[1]) * _UNITS_S[ago[2]])
    if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text.strip()):
        hour, minute, *second = (int(part) for part in text.split(":"))
        at = now.replace(hour=hour, minute=minute, second=sum(second), microsecond=0)
        return at if at <= now else at - timedelta(days=1)
    at = datetime.fromisoformat(text.strip())
    return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)


def time_of(line: str, now: datetime) -> datetime | None:
    """Return the time in a log line, None if it has none."""
    head = line[:_SEARCHED]
    try:
        if full := _FULL.search(head):
            at = datetime.fromisoformat(f"{full[1]}T{full[2]}{full[3] or ''}")
            return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
        if vllm := _VLLM.search(head):
            at = datetime.fromisoformat(f"{now.year}-{vllm[1]}T{vllm[2]}")
            at = at.replace(tzinfo=now.tzinfo)
            return at if at <= now + timedelta(days=1) else at.replace(year=now.year - 1)
    except ValueError:  # digits that are not a valid time
        pass
    return None


def since(lines: Sequence[str], begin: datetime, now: datetime) -> list[str]:
    """Return the lines from the first line on that was written at or after `begin`."""
    for position, line in enumerate(lines):
        at = time_of(line, now)
        if at is not None and at >= begin.replace(microsecond=0):
            return list(lines[position:])
    return []
