"""What an engine's start does where the disk is full, and what its log does not repeat."""

import logging
import os
import sys
from pathlib import Path

from deployments.engine.main import NoRequestText
from deployments.engine.process import EngineProcess, _Pipes
from deployments.engine.supervisor import _open_log
from deployments.model_server.golden import GoldenAnswer
from deployments.settings import AppArgs, load_settings, paths

SPEC = load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).models["qwen-14b"]
NO_PID = 2**22  # one more than Linux gives


def test_log_on_a_full_disk_does_not_keep_an_engine_from_starting(tmp_path: Path) -> None:
    engine = EngineProcess(SPEC, 1, tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "qwen-14b.log").symlink_to("/dev/full")
    engine._prepare_files()
    assert engine.socket.parent.is_dir()


def test_engine_whose_log_can_not_be_made_runs_without(tmp_path: Path) -> None:
    fd = _open_log(str(tmp_path / "no" / "folder"))
    assert os.write(fd, b"x") == 1
    os.close(fd)


def test_record_of_the_answer_that_can_not_be_kept_fails_no_load(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "qwen-14b.json.tmp").symlink_to("/dev/full")
    GoldenAnswer(SPEC, tmp_path, "cpu", tmp_path)._save({"tokens": []})
    assert not (tmp_path / "golden" / "qwen-14b.json").exists()


async def test_engine_goes_on_whose_note_can_not_be_kept(tmp_path: Path) -> None:
    """The note on its lock only tells others whose the place is."""
    lock = tmp_path / paths.gpu_lock()
    lock.parent.mkdir()
    lock.symlink_to("/dev/full")
    engine = EngineProcess(SPEC, 1, tmp_path)
    with _Pipes() as pipes:
        os.write(pipes.status_write, b'{"pid": %d, "supervisor": 1}\n{"exit": 0}\n' % NO_PID)
        await engine._follow(pipes, 30)
    await engine.ended.wait()
    assert (engine.pid, engine.exit_code) == (NO_PID, 0)


def test_log_repeats_nothing_of_a_request() -> None:
    try:
        raise ValueError("SECRET\nCudaError: forged")
    except ValueError:
        told = sys.exc_info()
    name = "vllm.entrypoints.anthropic.api_router"
    record = logging.LogRecord(
        name, logging.ERROR, "f", 1, "Error in create_messages: %s", ("SECRET",), told
    )
    assert NoRequestText().filter(record)
    text = logging.Formatter().format(record)
    assert "SECRET" not in text.replace('raise ValueError("SECRET', "")
    assert "Error in create_messages" in text
    assert "ValueError" in text


def test_log_of_a_start_is_whole() -> None:
    record = logging.LogRecord(
        "vllm.v1.worker", logging.ERROR, "f", 1, "no memory: %s", ("12 GiB",), None
    )
    assert NoRequestText().filter(record)
    assert record.getMessage() == "no memory: 12 GiB"
