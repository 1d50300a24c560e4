"""A real server for tests: `llm-backend start --foreground` on a free port, with a home and a Ray
session of its own, so that it runs beside a backend in use; and a watch on its process table."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import yaml

from deployments.settings import PROJECT
from serve_app.launcher import private
from serve_app.launcher.ports import free_port
from tests.conftest import DEMO_HOME

START_TIMEOUT_S = 420.0
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@contextmanager
def beside(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """Do `work` in a thread until the end of a `with`, which sets `stop`."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll what gives no event, with a deadline; returns the first true value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass
class EngineWatch:
    """Samples which engines are alive; an engine is known by the socket on its command line."""

    home: Path
    most_at_once: int = 0
    seen: set[str] = field(default_factory=set)
    processes: set[psutil.Process] = field(default_factory=set)  # of all engines that were seen
    _stop: threading.Event = field(default_factory=threading.Event)

    def engines(self) -> dict[str, list[psutil.Process]]:
        """Socket name -> its living processes: the API server, and those of its session."""
        found: dict[str, list[psutil.Process]] = {}
        mark = f"--uds={self.home}/"
        for pid in psutil.pids():
            try:
                # A title set later is one argument. Read here, as a sample of psutil takes twice
                # the time, which the engines need themselves.
                line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
                if mark not in line or "supervisor.py" in line:
                    continue
                uds = line.partition(mark)[2].replace("\0", " ").split()[0]
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[Path(uds).name] = [process, *process.children(recursive=True)]
            except (OSError, psutil.Error):
                continue
        return found

    def orphans(self) -> set[psutil.Process]:
        """What still lives of engines that were seen, and belongs to none that is there."""
        living = {p for engine in self.engines().values() for p in engine}
        return {p for p in self.processes - living if p.is_running() and not _is_zombie(p)}

    def _sample(self) -> None:
        while not self._stop.wait(0.03):
            engines = self.engines()
            self.seen |= set(engines)
            self.processes.update(*engines.values())
            self.most_at_once = max(self.most_at_once, len(engines))

    @contextmanager
    def watching(self) -> Iterator["EngineWatch"]:
        """Sample all the while; `most_at_once` is the verdict."""
        self.most_at_once, self.seen, self.processes = 0, set(), set()
        self._stop.clear()
        with beside(self._sample, self._stop):
            yield self


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    home: Path
    url: str
    config: Path
    ray_tmp: Path
    reader: threading.Thread
    seen: set[psutil.Process] = field(default_factory=set)  # of its family

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=400)

    def get(self, path: str) -> Any:
        with self.http as http:
            return http.get(path).json()

    def chat(self, model: str, *, cache: str = "off", **fields: Any) -> httpx.Response:
        """An answer made by the model's engine, unless `cache` is "on"."""
        body = {"model": model, "messages": CAPITAL, "temperature": 0, "max_tokens": 16} | fields
        with self.http as http:
            return http.post("/v1/chat/completions", json=body, headers={"X-Cache": cache})

    def switch(self, model: str, **fields: Any) -> httpx.Response:
        with self.http as http:
            return http.post("/admin/switch", json={"model": model, "wait": True} | fields)

    def dashboard(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A call to Ray's dashboard with Ray's token."""
        token = private.ray_token(self.home).read_text()
        url = self.get("/admin/status")["dashboard"] + path
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.request(method, url, headers=headers, timeout=120, **options)
        assert answer.status_code == 200, answer.text
        return answer

    def old_port(self, model: str) -> int:
        """The address that a model had of its own, in this server's settings."""
        args = yaml.safe_load(self.config.read_text())["applications"][0]["args"]
        file = Path(args["config_dir"]) / "models" / f"{model}.yaml"
        return int(yaml.safe_load(file.read_text())["port"])

    def watch(self) -> EngineWatch:
        return EngineWatch(self.home)

    def wait_serving(self, model: str, timeout_s: float = 300, after_epoch: int = 0) -> int:
        """The epoch under which `model` serves, once it does."""

        def serves() -> int:
            try:
                health = self.get("/health")
            except (httpx.HTTPError, ValueError):
                return 0
            ok = health["state"] == "serving" and health["resident"] == model
            return int(health["epoch"]) if ok and health["epoch"] > after_epoch else 0

        return int(wait_until(serves, timeout_s, f"{model} serves"))

    def family(self) -> list[psutil.Process]:
        """Every process of this server that lives: its tree, Ray's, engines with their supervisors,
        and whatever was seen of them before."""
        marks = (str(self.home), str(self.ray_tmp))
        own = {self.process.pid}
        found = self.seen
        if self.process.poll() is None:
            found |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter():
            try:
                if process.pid in own or any(m in " ".join(process.cmdline()) for m in marks):
                    found.add(process)
            except psutil.Error:
                continue
        return [process for process in found if _lives(process)]

    def stop(self) -> None:
        """Ctrl-C, and see that nothing is left."""
        self.family()  # what is to be gone
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(150)
        wait_until(lambda: not self.family(), 120, f"nothing is left: {self.family()}")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def make_home(folder: Path) -> Path:
    """A home of its own that shares the demo models; a server's second start finds its first's."""
    home = folder / "home"
    if not home.exists():
        home.mkdir()
        (home / "models").symlink_to(DEMO_HOME / "models")
    return home


def make_config(folder: Path, home: Path, port: int, **args: Any) -> Path:
    """serve_config.yaml with another port and home."""
    config = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    ours = {"home": str(home), "profile": "cpu-demo", "env_file": ""}
    config["applications"][0]["args"] |= ours | args
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _move_old_ports(configs: Path) -> None:
    """A backend in use has those that are shipped."""
    for file in (configs / "models").glob("*.yaml"):
        moved = re.sub(r"^port: \d+$", f"port: {free_port()}", file.read_text(), flags=re.MULTILINE)
        file.write_text(moved)


def start(
    folder: Path,
    timeout_s: float = START_TIMEOUT_S,
    ray_environment: Mapping[str, str] = MappingProxyType({}),
    **args: Any,
) -> Server:
    """Start a server under `folder` and wait until a model serves, or none is to."""
    home, port = make_home(folder), free_port()
    configs = Path(args.pop("config_dir", "") or folder / "configs")
    if not configs.exists():
        shutil.copytree(PROJECT / "configs", configs)
    _move_old_ports(configs)
    config = make_config(folder, home, port, config_dir=str(configs), **args)
    # Ray's sockets have long names under it, and a socket's path has 107 bytes.
    ray_tmp = Path(tempfile.mkdtemp(prefix="llmb-", dir="/tmp"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("llm-backend")), "start", "--foreground"),
            *("--config", str(config)),
        ],
        env=environment | {"RAY_TMPDIR": str(ray_tmp)} | dict(ray_environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
    reader.start()
    try:
        wait_until(
            lambda: "Ctrl-C stops it." in "".join(lines) or process.poll() is not None,
            timeout_s,
            "the server is ready",
        )
        assert process.poll() is None, "".join(lines)
    except BaseException:
        process.terminate()
        process.wait(150)
        reader.join(10)
        process.stdout.close()
        raise
    return Server(process, home, f"http://127.0.0.1:{port}", config, ray_tmp, reader)


@contextmanager
def running(
    folder: Path,
    timeout_s: float = START_TIMEOUT_S,
    ray_environment: Mapping[str, str] = MappingProxyType({}),
    **args: Any,
) -> Iterator[Server]:
    """A server for the length of a `with`; leaves no process and no session folder."""
    server = start(folder, timeout_s, ray_environment, **args)
    try:
        yield server
    finally:
        server.stop()
        server.reader.join(10)
        assert server.process.stdout
        server.process.stdout.close()
        shutil.rmtree(server.ray_tmp, ignore_errors=True)
