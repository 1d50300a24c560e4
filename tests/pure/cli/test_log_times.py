"""`--since`, and the times in the log lines of four programs."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from serve_app.cli.log_times import moment, since, time_of

HERE = timezone(timedelta(hours=2))
NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=HERE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("10m", NOW - timedelta(minutes=10)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2 d", NOW - timedelta(days=2)),
        ("11:30", NOW.replace(hour=11, minute=30)),
        ("23:15:07", datetime(2026, 1, 1, 23, 15, 7, tzinfo=HERE)),
        ("2026-01-01 08:00", datetime(2026, 1, 1, 8, tzinfo=HERE)),
        ("2026-01-01T08:00:00Z", datetime(2026, 1, 1, 8, tzinfo=UTC)),
    ],
)
def test_since_takes_a_duration_a_time_of_day_or_a_date(text: str, expected: datetime) -> None:
    """A time of day is the last one before now."""
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "10", "m", "25:00", "-5m", "11:"])
def test_text_that_is_not_a_time_is_refused(text: str) -> None:
    """It is not read as another time."""
    with pytest.raises(ValueError):  # noqa: PT011  the text is the standard library's
        moment(text, NOW)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"time": "2026-01-02T09:59:00.123+00:00", "level": "info"}', NOW - timedelta(minutes=1)),
        (
            "(APIServer pid=7) INFO 01-02 11:59:00 [launcher.py:37] Route",
            NOW - timedelta(minutes=1),
        ),
        ("2026-01-02 11:59:00,456\tINFO worker.py:2014 -- Started", NOW - timedelta(minutes=1)),
        ("INFO 2026-01-02 11:59:00,456 serve 4 -- Deployed", NOW - timedelta(minutes=1)),
        ("ERROR 12-31 23:00:00 [core.py:1] of last year", datetime(2025, 12, 31, 23, tzinfo=HERE)),
        ("Traceback (most recent call last):", None),
        ("INFO 13-45 99:00:00 [x] no time", None),
    ],
)
def test_time_is_read_from_the_lines_of_each_program(line: str, expected: datetime | None) -> None:
    """This project's, vLLM's, Ray's and Serve's lines."""
    at = time_of(line, NOW)
    assert (at and at.replace(microsecond=0)) == expected


def test_lines_without_a_time_belong_to_the_line_before() -> None:
    """A traceback is shown with the line it explains, or not at all."""
    lines = ["ERROR 01-02 10:00:00 [a] x", "  File 1", "ERROR 01-02 11:58:00 [b] y", "  File 2"]
    assert since(lines, NOW - timedelta(minutes=5), NOW) == lines[2:]
    assert since(lines, NOW - timedelta(hours=5), NOW) == lines
    assert since(lines, NOW, NOW) == []
