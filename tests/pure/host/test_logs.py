"""What our log lines hold, and that their files stay bounded."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.host import logs
from serve_app.telemetry.context import RequestFields, begin_request, request_context


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, given back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("llm_backend")
    before, level = list(root.handlers), ours.level
    yield root
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    ours.setLevel(level)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def formatted(message: str, **fields: Any) -> str:
    record = logging.makeLogRecord({"name": "llm_backend.x", "msg": message, **fields})
    assert RequestFields().filter(record)
    return logs.JsonLines().format(record)


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\n{}", "\u2028", "\x1b[2J", '"', "\\", "\x00", "\x85"]
)
def test_no_text_breaks_a_line(text: str) -> None:
    """As the event and as a field: one line, and the text comes back whole."""
    line = formatted(text, model=text)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["event"] == json.loads(line)["model"] == text


def test_a_line_says_when_what_and_for_which_request() -> None:
    """The fields that a reader filters by; what is noted later is there later."""
    begin_request("r-1")
    request_context().model, request_context().epoch, request_context().queued_s = (
        "qwen-vl",
        3,
        0.0123,
    )
    line = json.loads(formatted("engine lost", levelno=30, levelname="WARNING", ticket="sw-1"))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "llm_backend.x",
        "event": "engine lost",
        "request_id": "r-1",
        "model": "qwen-vl",
        "epoch": 3,
        "queue_ms": 12.3,
        "ticket": "sw-1",
    }


def fail(error: Exception) -> dict[str, Any]:
    with pytest.raises(type(error)) as caught:
        raise error
    record = logging.makeLogRecord({"exc_info": (caught.type, caught.value, caught.tb)})
    line: dict[str, Any] = json.loads(logs.JsonLines().format(record))
    return line


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError])
def test_an_error_that_may_quote_a_request_is_named_only(kind: type[Exception]) -> None:
    line = fail(kind("my secret prompt"))
    assert "secret" not in json.dumps(line)
    assert line["error"] == kind.__name__
    assert line["at"][-1].endswith(" fail")


def test_an_error_of_the_system_keeps_its_text() -> None:
    assert "No space left" in fail(OSError(28, "No space left on device"))["error"]


def test_a_long_value_is_cut() -> None:
    assert len(json.loads(formatted("x" * 10_000))["event"]) < 2100


def test_files_stay_bounded_and_no_line_is_cut(
    tmp_path: Path, root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files at most, each whole lines; the newest line is in the newest."""
    monkeypatch.setattr(logs, "FILE_BYTES", 4000)
    logs.write_to_file(tmp_path, "gateway")
    for number in range(200):
        logging.getLogger("llm_backend.x").info("event %d", number)
    files = sorted((tmp_path / "logs").iterdir())
    assert [f.name for f in files] == ["gateway.log", "gateway.log.1", "gateway.log.2"]
    assert all(f.stat().st_size <= 4000 for f in files)
    assert lines(files[0])[-1]["event"] == "event 199"
    events = [line["event"] for f in reversed(files) for line in lines(f)]
    assert events == [f"event {n}" for n in range(200 - len(events), 200)]


def test_a_process_follows_a_rotation_by_another(tmp_path: Path, root: logging.Logger) -> None:
    """Else it would write to the set aside file for ever, which is deleted in the end."""
    logs.write_to_file(tmp_path, "gateway")
    path = tmp_path / "logs" / "gateway.log"
    logging.getLogger("llm_backend.x").info("one")
    logs.set_aside(path)
    logging.getLogger("llm_backend.x").info("two")
    assert [line["event"] for line in lines(path)] == ["two"]
    assert [line["event"] for line in lines(path.with_name("gateway.log.1"))] == ["one"]


def test_a_home_that_cannot_be_written_loses_only_log_lines(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.write_to_file(Path("/proc/nowhere"), "gateway")
    logging.getLogger("llm_backend.x").info("goes on")
    assert "FileNotFoundError" in capsys.readouterr().err


def test_a_file_that_another_process_writes_is_emptied(tmp_path: Path) -> None:
    """An engine holds its log open: what was there is set aside, and it goes on at the start."""
    path = tmp_path / "qwen-vl.log"
    with path.open("a") as engine:
        engine.write("old\n" * 10)
        engine.flush()
        assert not logs.keep_bounded(path, 100)
        assert logs.keep_bounded(path, 30)
        engine.write("new\n")
    assert path.read_text() == "new\n"
    assert (tmp_path / "qwen-vl.log.1").read_text() == "old\n" * 10
