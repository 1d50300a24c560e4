"""How much of a card CUDA gives out: asked of its library, else taken from what was seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.memory import cuda_total
from deployments.settings import PROJECT

MIB = 2**20
TOTAL_BYTES = 16_303 * MIB
PROGRAM = (
    "from deployments.memory.cuda_total import cuda_total_bytes; "
    f"print(cuda_total_bytes({TOTAL_BYTES}, '0'))"
)


def test_cuda_is_asked(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("the stub of the driver's libraries needs a C compiler: apt install gcc")
    source = Path(__file__).with_name("cuda_total.c")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) == 15_842 * MIB


@pytest.mark.parametrize(("is_wsl", "mib"), [(False, 15_841), (True, 16_303)])
def test_card_on_paper_is_what_linux_and_wsl2_were_seen_to_give(monkeypatch, is_wsl, mib):
    monkeypatch.setattr(cuda_total, "_ask_cuda", lambda visible: None)
    monkeypatch.setattr(cuda_total, "is_wsl", lambda: is_wsl)
    assert cuda_total.cuda_total_bytes(TOTAL_BYTES, None) == mib * MIB


def test_answer_about_another_card_is_not_believed(monkeypatch):
    """Of a machine with two, whose CUDA orders them otherwise."""
    monkeypatch.setattr(cuda_total, "_ask_cuda", lambda visible: 32_146 * MIB)
    monkeypatch.setattr(cuda_total, "is_wsl", lambda: False)
    assert cuda_total.cuda_total_bytes(TOTAL_BYTES, None) == 15_841 * MIB
