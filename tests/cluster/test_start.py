"""Starting and stopping: what is in the way is one sentence, and nothing is left behind."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.settings import PROJECT, default_home
from tests.cluster.server import (
    START_TIMEOUT_S,
    Server,
    free_port,
    make_config,
    make_home,
    wait_until,
)
from tests.terminal import Terminal

pytestmark = pytest.mark.timeout(600)


def start_and_fail(config: Path, **environment: str) -> str:
    """Run `llm-backend start`, which must refuse; returns its one line."""
    command = [str(Path(sys.executable).with_name("llm-backend")), "start", "--config", str(config)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=inherited | environment,
        timeout=150,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1, result.stdout
    return result.stdout


def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = start_and_fail(make_config(tmp_path, make_home(tmp_path), port))
    assert f"port {port} is taken by" in line
    assert str(os.getpid()) in line


def test_missing_model_is_named_with_the_remedy(tmp_path: Path) -> None:
    home = tmp_path / "empty"
    line = start_and_fail(make_config(tmp_path, home, free_port()))
    assert "qwen-14b (demo/smollm2-135m-instruct) are not on this machine" in line
    assert "make models" in line


def test_unsafe_checkpoint_is_refused(tmp_path: Path) -> None:
    """Nothing of it is loaded, at a start as at a switch."""
    home = tmp_path / "home"
    demo = "smollm2-135m-instruct"
    shutil.copytree(default_home() / "models" / demo, home / "models" / demo)
    (home / "models" / demo / "training_args.bin").write_bytes(b"")
    line = start_and_fail(make_config(tmp_path, home, free_port()))
    assert "qwen-14b is refused: training_args.bin is a pickle" in line


def test_running_ray_cluster_is_named(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_home(tmp_path), free_port())
    line = start_and_fail(config, RAY_ADDRESS="127.0.0.1:6379")
    assert "RAY_ADDRESS names a Ray cluster (127.0.0.1:6379)" in line


def test_unknown_setting_is_named_with_the_valid_ones(tmp_path: Path) -> None:
    configs = shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    file = configs / "models" / "qwen-vl.yaml"
    file.write_text(file.read_text().replace("max_num_seqs: 10", "max_seqs: 10"))
    home = make_home(tmp_path)
    line = start_and_fail(make_config(tmp_path, home, free_port(), config_dir=str(configs)))
    assert "qwen-vl.yaml: profiles.cpu-demo.engine.max_seqs: unknown key" in line
    assert "max_num_seqs" in line


def test_full_disk_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("this sandbox does not allow mounts")
    try:
        line = start_and_fail(make_config(tmp_path, small, free_port()))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert "GiB free" in line


def test_second_copy_is_refused_and_the_first_unharmed(server: Server, tmp_path: Path) -> None:
    server.wait_serving(server.get("/health")["resident"])
    line = start_and_fail(make_config(tmp_path, server.home, free_port()))
    assert f"a server on {server.home} is already running" in line
    assert server.get("/health")["state"] == "serving"


class Desk:
    """A home, a port and a program to run there, as a user has them."""

    def __init__(self, folder: Path) -> None:
        self.home, self.port = make_home(folder), free_port()
        self.config = str(make_config(folder, self.home, self.port))
        self.ray_tmp = tempfile.mkdtemp(prefix="llmb-", dir="/tmp")
        self.program = str(Path(sys.executable).with_name("llm-backend"))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own = {"RAY_TMPDIR": self.ray_tmp, "LLM_BACKEND_HOME": str(self.home), "TERM": "xterm"}
        self.environment = inherited | own

    def start(self) -> Terminal:
        """In a terminal, where it asks; answered with the second model."""
        terminal = Terminal(
            *(self.program, "start", "--config", self.config), environment=self.environment
        )
        wait_until(lambda: "Which model" in terminal.shown, 120, "it asks")
        terminal.type("2\n")
        return terminal

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )

    def family(self) -> list[str]:
        """What runs of this server, by its command lines."""
        lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        marks = (str(self.home), self.ray_tmp, self.config)
        return [line for line in lines if any(mark in line for mark in marks)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.run("stop", "--config", desk.config)
    shutil.rmtree(desk.ray_tmp, ignore_errors=True)


@pytest.mark.own_server
def test_start_in_a_terminal_outlives_it_and_stop_ends_all(desk: Desk) -> None:
    """It asks for the model, returns when that serves; then a stop leaves nothing."""
    terminal = desk.start()
    assert terminal.process.wait(START_TIMEOUT_S) == 0, terminal.shown
    terminal.close()
    assert f"Ready: qwen-coder serves on http://127.0.0.1:{desk.port}" in terminal.shown
    assert "Ctrl-C" not in terminal.shown
    answer = desk.run("chat", "qwen-coder", "What is the capital of France?", "--temperature", "0")
    assert "Paris" in answer.stdout, answer.stderr
    assert desk.run("health").returncode == 0
    stopped = desk.run("stop", "--config", desk.config)
    assert stopped.stdout.endswith("Stopped; nothing is left running.\n"), stopped
    assert desk.family() == []
    again = desk.run("stop", "--config", desk.config)
    assert again.stdout == f"No server is running on {desk.home}.\n"
    assert desk.run("health").returncode == 3


@pytest.mark.own_server
def test_ctrl_c_at_the_terminal_while_starting_leaves_nothing(desk: Desk) -> None:
    """Half a server is ended in the same order as a whole one."""
    terminal = desk.start()
    wait_until(lambda: any("raylet" in line for line in desk.family()), 240, "Ray is starting")
    terminal.type("\x03")
    assert terminal.process.wait(240) == 130, terminal.shown
    terminal.close()
    assert "Traceback" not in terminal.shown
    wait_until(lambda: not desk.family(), 120, "nothing is left")


def test_what_is_in_the_way_is_said_at_the_terminal_too(desk: Desk) -> None:
    """After the question, in one sentence."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", desk.port))
        taken.listen()
        terminal = desk.start()
        assert terminal.process.wait(150) == 1
    terminal.close()
    assert "1  qwen-14b  (Enter)" in terminal.shown
    assert f"Cannot start: port {desk.port} is taken by" in terminal.shown
