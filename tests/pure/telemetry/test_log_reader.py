"""Tests reading the end of a log that grows, is replaced or is truncated."""

from pathlib import Path

import pytest

from deployments.host import logs
from serve_app.telemetry import log_reader
from serve_app.telemetry.log_reader import Follower, last_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.log"
    path.write_text("".join(f"line {n}\n" for n in range(20_000)))
    return path


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("num_lines", [0, 1, 3, 19_999, 20_000, 30_000])
def test_the_last_lines_are_the_last(log: Path, num_lines: int) -> None:
    """Also across several blocks, and if the log has fewer lines."""
    expected = [f"line {n}" for n in range(max(0, 20_000 - num_lines), 20_000)]
    assert last_lines(log, num_lines) == expected


def test_an_unfinished_line_is_shown_too(log: Path) -> None:
    """A process may have been killed while writing it, and the line may say why."""
    add(log, "Segmentation fa")
    assert last_lines(log, 2) == ["line 19999", "Segmentation fa"]


def test_the_lines_of_a_just_rotated_log_include_the_older_file(log: Path) -> None:
    logs.set_aside(log)
    log.write_text("new\n")
    assert last_lines(log, 3) == ["line 19998", "line 19999", "new"]


def test_no_log_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log", 10) == []


def test_a_follower_gets_each_line_once(log: Path) -> None:
    """Existing lines in `past`, later ones as new; half a line waits for its other half."""
    follower = Follower(log, 1)
    assert follower.past == ["line 19999"]
    assert follower.new_lines() == []
    add(log, "a\nb")
    assert follower.new_lines() == ["a"]
    add(log, "c\n")
    assert follower.new_lines() == ["bc"]
    follower.close()


def test_a_follower_continues_with_the_new_file(log: Path) -> None:
    """It loses neither the last lines of the old file nor the first of the new one."""
    follower = Follower(log, 0)
    add(log, "last\nof the old")
    logs.set_aside(log)
    assert follower.new_lines() == ["last"]
    log.write_text("first\n")
    assert follower.new_lines() == ["of the old", "first"]
    follower.close()


def test_a_follower_reads_on_after_a_truncation(log: Path) -> None:
    """`keep_bounded` truncates an engine's log."""
    follower = Follower(log, 0)
    assert logs.keep_bounded(log, 1000)
    add(log, "first\n")
    assert follower.new_lines() == ["first"]
    follower.close()


def test_a_follower_waits_for_a_log_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "redis.log"
    follower = Follower(path, 10)
    assert follower.new_lines() == []
    path.write_text("hello\n")
    assert follower.new_lines() == ["hello"]
    follower.close()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[1;36mINFO\x1b[0m ready", "INFO ready"),
        (b"loading 10%\rloading 100%", "loading 100%"),
        (b"a\x00\x07\x9b\xffb", "a��b"),
        ("東京 🎬\tx".encode(), "東京 🎬\tx"),
    ],
)
def test_a_line_holds_no_terminal_control(tmp_path: Path, raw: bytes, shown: str) -> None:
    """An engine may colour its log, and print text that a client sent."""
    path = tmp_path / "qwen-vl.log"
    path.write_bytes(raw + b"\n")
    assert last_lines(path, 1) == [shown]


def test_a_service_is_a_name_and_never_a_path() -> None:
    """`all` means every service; a name that is not in the list has no log."""
    home, models = Path("/home"), ["qwen-vl"]
    assert log_reader.paths_of("qwen-vl", home, models) == {
        "qwen-vl": Path("/home/logs/qwen-vl.log")
    }
    assert set(log_reader.paths_of("all", home, models)) == {*log_reader.SERVICES, "qwen-vl"}
    for name in ("", "..", "../run/residency.json", "gateway.log", "/etc/passwd", "gateway/"):
        assert log_reader.paths_of(name, home, models) == {}
