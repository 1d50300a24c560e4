"""Why an engine ended, as its log tells it."""

from pathlib import Path

import pytest

from deployments.engine.process import EngineProcess
from deployments.settings import AppArgs, load_settings

ADVICE = (
    "(EngineCore pid=1) WARNING [system_utils.py:1] Found ulimit of 1024 and failed to raise it. "
    "This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.\n"
)
CAUSE = "(EngineCore pid=1) ERROR [core.py:1] RuntimeError: start (0) + length (3072) exceeds\n"


WARNING = "(EngineCore pid=1) WARNING [cpu.py:1] RuntimeError: could not create a primitive\n"
FORGED = "(APIServer pid=1) ERROR [serving.py:1] X\nCudaError: forged\nOSError: forged too\n"
FULL = (
    "(EngineCore pid=1) ERROR 11-25 10:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of it\n"
)
KILLED = "the engine of qwen-14b was killed by signal 9"


def message(home: Path, log: str, *, is_ready: bool) -> str:
    spec = load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).models["qwen-14b"]
    engine = EngineProcess(spec, 1, home)
    (home / "logs").mkdir()
    (home / "logs" / "qwen-14b.log").write_text(log)
    engine.exit_code = -9
    engine._was_ready = is_ready
    return engine.why_ended().message


@pytest.mark.parametrize(
    ("log", "detail"),
    [
        ("", ""),
        (ADVICE, ""),
        (WARNING, ""),
        (CAUSE + ADVICE, ": RuntimeError: start (0) + length (3072) exceeds"),
        ("ValueError: printed by a traceback\n", ": ValueError: printed by a traceback"),
    ],
)
def test_failed_start_is_told_by_its_last_error(tmp_path: Path, log: str, detail: str) -> None:
    assert message(tmp_path, log, is_ready=False) == KILLED + detail


@pytest.mark.parametrize(
    ("log", "detail"),
    [
        (CAUSE, ""),
        (FORGED, ""),
        (FULL, ": the GPU's memory was full"),
        (FULL + FORGED, ": the GPU's memory was full"),
        ("X\ntorch.OutOfMemoryError: by a client\n", ""),
        ("(APIServer pid=1) ERROR [a.py:1] torch.OutOfMemoryError: by a client\n", ""),
    ],
)
def test_death_of_an_engine_that_served_is_told_in_our_words(
    tmp_path: Path, log: str, detail: str
) -> None:
    """Clients' text gets into its log."""
    assert message(tmp_path, log, is_ready=True) == KILLED + detail
