"""A run of the tests that is killed leaves none of the processes that its tests have started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.settings import PROJECT

# One that ends another in order, as the launcher ends Serve, and one that nobody ends.
INNER = """
import subprocess, sys

KEEPER = '''
import signal, subprocess, sys
server = subprocess.Popen(["sleep", "600"], start_new_session=True)
def end(*_):
    server.kill()
    server.wait()
    sys.exit()
signal.signal(signal.SIGTERM, end)
print(server.pid, flush=True)
signal.pause()
'''

def test_that_never_ends():
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, "start", ""], stdout=subprocess.PIPE)
    lonely = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(keeper.pid, lonely.pid, keeper.stdout.readline().decode(), flush=True)
    keeper.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Neither those that end others in order, nor any else."""
    file = tmp_path / "test_inner.py"
    file.write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "tests.conftest", str(file)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as run:
        assert run.stdout
        started = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(started) == 3
        run.send_signal(number)
    _, left = psutil.wait_procs(started, 30)
    assert left == []
