"""Why an engine ended, as its log tells it."""

from pathlib import Path

import pytest

from deployments.vllm_engine import VllmEngine
from serve_app.settings import AppArgs, load_settings

ADVICE = (
    "(EngineCore pid=1) WARNING [system_utils.py:1] Found ulimit of 1024 and failed to raise it. "
    "This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.\n"
)
CAUSE = "(EngineCore pid=1) ERROR [core.py:1] RuntimeError: start (0) + length (3072) exceeds\n"


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "the engine of qwen-14b was killed by signal 9 with exit code -9"),
        (ADVICE, "the engine of qwen-14b was killed by signal 9 with exit code -9"),
        (CAUSE + ADVICE, "killed by signal 9: RuntimeError: start (0) + length (3072) exceeds"),
    ],
)
def test_advice_that_quotes_an_error_is_no_cause(tmp_path: Path, log: str, message: str) -> None:
    spec = load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).models["qwen-14b"]
    engine = VllmEngine(spec, 1, tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "qwen-14b.log").write_text(log)
    engine.exit_code = -9
    assert engine.why_ended().message.endswith(message)
