"""Formats values as lines of text, the same for a terminal and a pipe."""

from collections.abc import Sequence
from typing import Any


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align the rows: each column is as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Format seconds as `40 s`, `12 min`, `3 h 20 min` or `2 days`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days"


def size(num_bytes: float | None) -> str:
    """Format bytes in decimal MB or GB; `-` for None."""
    if num_bytes is None:
        return "-"
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def fields(value: dict[str, Any]) -> str:
    """Format an object's fields, one on each line."""
    return columns([(name.replace("_", " "), _plain(v)) for name, v in value.items()])


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)
