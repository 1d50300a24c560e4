"""The PID file, and stopping the server that it names: with real processes, and no server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from deployments.settings import PROJECT
from deployments.switchboard.messages import LeaseView
from deployments.switchboard.state_file import SavedState, load_state, save_state
from serve_app.launcher import background, pidfile
from serve_app.launcher.preflight import PreflightError

# Starts a session with a child, as the launcher starts Serve's; SIGTERM ends it in order, or not.
LAUNCHER = """
import os, signal, subprocess, sys
from pathlib import Path
from serve_app.launcher import pidfile
home, obeys, serve_obeys = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3] == "True"
script = "trap '' TERM; " * (not serve_obeys) + "sleep 600 & wait; sleep 600"
serve = subprocess.Popen(["sh", "-c", script], start_new_session=True)
pidfile.note(home, serve.pid, "http://127.0.0.1:1", "cpu-demo")
def end(*_):
    if obeys:
        os.killpg(serve.pid, signal.SIGKILL)
        serve.wait()
        sys.exit()
signal.signal(signal.SIGTERM, end)
print(serve.pid, flush=True)
while True:
    signal.pause()
"""


class Launched:
    """A launcher and the session that it started."""

    def __init__(self, home: Path, obeys: bool = True, serve_obeys: bool = True) -> None:
        self.home = home
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(home), str(obeys), str(serve_obeys)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.launcher.stdout
        serve = psutil.Process(int(self.launcher.stdout.readline()))
        self.family = [psutil.Process(self.launcher.pid), serve, *serve.children(recursive=True)]

    def stop(self) -> list[str]:
        server = pidfile.find(self.home)
        assert server
        return pidfile.stop(self.home, server, lambda _: None)

    @property
    def is_over(self) -> bool:
        self.launcher.poll()
        return not any(p.is_running() and p.status() != "zombie" for p in self.family)

    def clear(self) -> None:
        for process in self.family:
            if process.is_running():
                process.kill()
        self.launcher.wait()
        assert self.launcher.stdout
        self.launcher.stdout.close()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    launched = Launched(tmp_path)
    yield launched
    launched.clear()


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def test_stop_ends_all_of_it_and_nothing_else(
    launched: Launched, bystander: psutil.Process
) -> None:
    """The launcher ends everything in order; then there is no server."""
    assert launched.stop() == []
    assert launched.is_over
    assert bystander.is_running()
    assert pidfile.find(launched.home) is None
    assert not (launched.home / "run" / "server.json").exists()


def test_stop_ends_what_a_killed_launcher_left(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve lives on then, in its own session."""
    monkeypatch.setattr(pidfile, "_GRACE_S", 0.3)
    launched.launcher.kill()
    launched.launcher.wait()
    assert pidfile.find(launched.home)
    assert launched.stop() == []
    assert launched.is_over


def test_stop_kills_what_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadlines of the launcher and of Serve."""
    for name in ("_LAUNCHER_S", "_SERVE_S", "_GRACE_S"):
        monkeypatch.setattr(pidfile, name, 0.3)
    launched = Launched(tmp_path, obeys=False, serve_obeys=False)
    try:
        assert launched.stop() == []
        assert launched.is_over
    finally:
        launched.clear()


def test_stop_names_what_is_left(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example an engine that holds the GPU lock."""
    monkeypatch.setattr(pidfile, "_GRACE_S", 0.1)
    monkeypatch.setattr(pidfile.gpu_lock, "is_held", lambda home: True)
    assert launched.stop() == [f"an engine, which holds the GPU lock in {launched.home}"]


@pytest.mark.parametrize("change", [{"numbering": "another boot"}, {"launcher_ticks": 1}])
def test_a_reused_process_id_is_no_server(tmp_path: Path, change: dict[str, str]) -> None:
    """After a reboot, or when the same ID belongs to another process."""
    pidfile.note(tmp_path, 2**22, "http://127.0.0.1:1", "cpu-demo")
    server = pidfile.find(tmp_path)
    assert server
    other = server.model_copy(update=change)
    assert not other.is_alive
    assert os.getpid() == server.launcher_pid


@pytest.mark.parametrize("text", ["", "{}", "null", "\x00"])
def test_a_broken_pid_file_is_no_server(tmp_path: Path, text: str) -> None:
    """No process is ended because of it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(text)
    assert pidfile.find(tmp_path) is None


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment that starts without a model, so that no checkpoint is looked for."""
    raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    raw["http_options"]["port"] = 0
    args = {"home": str(tmp_path / "home"), "profile": "cpu-demo", "default_model": "qwen-vl"}
    raw["applications"][0]["args"] = args
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return path


def test_a_chosen_model_replaces_the_saved_one(config: Path, tmp_path: Path) -> None:
    """Both in the deployment and in the Switchboard's saved state; the saved epoch stays."""
    state = tmp_path / "home" / "run" / "residency.json"
    save_state(state, SavedState("qwen-coder", 7))
    copy = background.choose(config, "none", "cpu-demo")
    args = yaml.safe_load(copy.read_text())["applications"][0]["args"]
    assert (args["default_model"], args["home"]) == ("none", str(tmp_path / "home"))
    assert load_state(state) == SavedState(None, 7)


def test_a_chosen_model_leaves_the_rest_of_the_saved_state(config: Path, tmp_path: Path) -> None:
    """The lease and the tickets outlive a start with another model."""
    state = tmp_path / "home" / "run" / "residency.json"
    lease = LeaseView("qwen-coder", "me", 60, 1.5)
    saved = SavedState("qwen-coder", 7, "session-1", lease, ({"id": "sw-1"},))
    save_state(state, saved)
    background.choose(config, "none", "cpu-demo")
    assert load_state(state) == replace(saved, desired=None)


def test_the_environments_home_takes_precedence_over_the_files(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For stopping a server and for starting it."""
    assert background.home_of(config) == tmp_path / "home"
    monkeypatch.setenv("LLM_BACKEND_HOME", str(tmp_path / "other"))
    assert background.home_of(config) == tmp_path / "other"


def test_without_a_choice_the_file_itself_is_started(config: Path, tmp_path: Path) -> None:
    """And the saved state is not written."""
    assert background.choose(config, None, None) == config
    assert not (tmp_path / "home").exists()


def test_an_unknown_model_is_refused_and_not_saved(config: Path, tmp_path: Path) -> None:
    """The error names the models that exist."""
    with pytest.raises(PreflightError, match=r"no model named 'nope'; there are qwen-14b, qwen"):
        background.choose(config, "nope", None)
    assert not (tmp_path / "home" / "run" / "residency.json").exists()


def test_the_start_question_offers_the_model_that_would_be_loaded(
    config: Path, tmp_path: Path
) -> None:
    """The saved model, else the deployment's default."""
    names = ["qwen-14b", "qwen-coder", "qwen-vl"]
    assert background.models_of(config, None) == (names, "qwen-vl")
    save_state(tmp_path / "home" / "run" / "residency.json", SavedState("qwen-coder", 7))
    assert background.models_of(config, None) == (names, "qwen-coder")


@pytest.fixture
def launcher(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that is started in place of the launcher; each test writes it."""
    script = tmp_path / "launcher"
    script.touch(mode=0o700)
    raw = yaml.safe_load(config.read_text())
    raw["applications"][0]["args"]["default_model"] = "none"
    config.write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def test_a_start_that_fails_yields_the_launchers_lines(config: Path, launcher: Path) -> None:
    """And its exit code."""
    launcher.write_text("#!/bin/sh\necho starting; echo 'no memory' >&2; exit 3\n")
    *_, last = steps = list(background.start(config))
    assert [line for step in steps for line in step.lines] == ["starting", "no memory"]
    assert (last.exit_code, last.is_ready, last.url) == (3, False, None)


def test_a_start_that_is_given_up_ends_what_it_started(
    config: Path, launcher: Path, tmp_path: Path
) -> None:
    """It sends SIGTERM, and waits for the end."""
    ended = tmp_path / "ended"
    launcher.write_text(
        f"#!/bin/sh\ntrap 'kill $!; touch {ended}; exit' TERM\necho up\nsleep 600 & wait\n"
    )
    steps = background.start(config)
    while not next(steps).lines:
        pass
    steps.close()
    assert ended.exists()


def test_a_server_of_an_older_version_is_found(tmp_path: Path) -> None:
    """Its PID file names the launcher `keeper`: so does a new one, for an older `stop`."""
    pidfile.note(tmp_path, 2**22, "http://127.0.0.1:1", "cpu-demo")
    path = tmp_path / "run" / "server.json"
    written = json.loads(path.read_text())
    assert (written["keeper"], written["serve"]) == (os.getpid(), 2**22)
    server = pidfile.find(tmp_path)
    assert server
    assert server.launcher_pid == os.getpid()
