"""The launcher, with a stub in place of Serve: however it ends, no process of its own is left."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from deployments.settings import PROJECT
from serve_app.launcher.ports import free_port

DEADLINE_S = 30
_MARK = "LLMB_TEST_HOME"

# Each round forks a launcher and signals it once its child exists, some steps later each time.
ROUNDS = """
import os, signal, sys
from pathlib import Path
from serve_app.launcher.foreground import run_server

sys.executable, home = sys.argv[2], Path(sys.argv[3])
for round in range(int(sys.argv[4])):
    launcher = os.fork()
    if not launcher:
        os._exit(run_server(Path(sys.argv[1]), lambda line: None))
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    while not (found := children.read_text().split()):
        pass
    for _ in range(round * 400):
        pass
    os.kill(launcher, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[round % 3])
    _, status = os.waitpid(launcher, 0)
    if status or Path(f"/proc/{found[0]}").exists() or (home / "run" / "server.json").exists():
        print("round", round, "status", status, flush=True)
"""
LAUNCH = """
import sys
from pathlib import Path
from serve_app.launcher.foreground import _print, run_server

sys.executable = sys.argv[2]
sys.exit(run_server(Path(sys.argv[1]), _print))
"""


class Stubbed:
    """A deployment that starts without a model, and a program in place of `serve`."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.serve = folder / "bin" / "serve"
        self.serve.parent.mkdir()
        self.serve.write_text("#!/bin/sh\nexec sleep 600\n")
        self.serve.chmod(0o700)
        configs = shutil.copytree(PROJECT / "configs", folder / "configs")
        profile = configs / "profiles" / "cpu-demo.yaml"
        profile.write_text(profile.read_text().replace("\nstandby: true\n", "\nstandby: false\n"))
        raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
        raw["http_options"]["port"] = free_port()
        raw["applications"][0]["args"] = {
            "home": str(self.home),
            "profile": "cpu-demo",
            "config_dir": str(configs),
            "default_model": "none",
            "env_file": "",
        }
        self.config = folder / "serve_config.yaml"
        self.config.write_text(yaml.safe_dump(raw))

    def command(self, script: str, *arguments: str) -> list[str]:
        program = str(self.serve.with_name("python"))  # beside which `serve` is looked for
        return [sys.executable, "-c", script, str(self.config), program, *arguments]

    @property
    def left(self) -> list[psutil.Process]:
        """The processes of this deployment that still live."""
        found = [
            process
            for process in psutil.process_iter(["environ", "status"])
            if (process.info["environ"] or {}).get(_MARK) == str(self.home)
        ]
        return [p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubbed:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    stubbed = Stubbed(tmp_path)
    monkeypatch.setenv(_MARK, str(stubbed.home))  # inherited by all that it starts
    return stubbed


def test_signal_at_any_moment_of_a_start_leaves_nothing(stubbed: Stubbed) -> None:
    """From the first process on; each launcher ends in order, with exit code 0."""
    result = subprocess.run(
        stubbed.command(ROUNDS, str(stubbed.home), "60"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("", 0), result.stderr
    assert stubbed.left == []
    assert not [path for path in (stubbed.home / "run").iterdir() if path.is_symlink()]


@pytest.fixture
def launcher(stubbed: Stubbed, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """A launcher whose output is a pipe that its reader has closed, or is closed from the start."""
    command = stubbed.command(LAUNCH)
    if request.param == "closed":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if request.param == "its reader gone":
            process.stdout.readline()
            process.stdout.close()
        yield process
        process.kill()
    for process in stubbed.left:
        process.kill()


@pytest.mark.parametrize("launcher", ["its reader gone", "closed"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_launcher_without_a_reader_still_stops_everything_in_order(
    stubbed: Stubbed, launcher: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    """Its output is lost; Serve and the PID file are gone when it ends."""
    while not (stubbed.home / "run" / "server.json").exists():
        assert launcher.poll() is None
    assert len(stubbed.left) == 2  # the launcher and what it started
    launcher.send_signal(number)
    launcher.wait(DEADLINE_S)
    assert stubbed.left == []
    assert not (stubbed.home / "run" / "server.json").exists()


def test_second_start_is_refused_while_the_first_is_under_way(stubbed: Stubbed) -> None:
    """Before it touches any file or port of the first."""
    with subprocess.Popen(stubbed.command(LAUNCH), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        first.stdout.readline()
        second = subprocess.run(
            stubbed.command(LAUNCH), capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert f"a server on {stubbed.home} is already running" in second.stdout
        first.terminate()
        assert first.wait(DEADLINE_S) == 0


def test_start_reports_files_that_other_users_can_reach(stubbed: Stubbed, tmp_path: Path) -> None:
    """With the command that protects them; the server starts all the same."""
    shared = Path("/tmp") / f"llmb-shared-{os.getpid()}"
    shared.mkdir()
    try:
        shared.chmod(0o777)
        with subprocess.Popen(
            stubbed.command(LAUNCH),
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAY_TMPDIR": str(shared)},
        ) as first:
            assert first.stdout
            lines = [first.stdout.readline(), first.stdout.readline()]
            first.terminate()
    finally:
        shared.rmdir()
    assert lines[1] == (f"Not private: other users can write to {shared} (chmod go-w {shared})\n")
