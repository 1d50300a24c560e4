"""Bare vLLM: its own server started with the flags our engines have, and nothing around it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from deployments.checkpoints import checkpoint
from deployments.engine import gpu_lock
from deployments.engine.args import engine_environment, engine_flags
from deployments.engine.environment import base_environment
from deployments.settings import ModelSpec, Settings
from serve_app.launcher.ports import free_port
from tests.bench.first_token import wait_first_token
from tests.bench.samples import Samples
from tests.bench.targets import BARE, CALLS

_READY_S = 900.0
_STOP_S = 60.0
_MODULE = "vllm.entrypoints.launchers.api_server.entry"


def folder_of(settings: Settings, spec: ModelSpec) -> Path:
    """The folder of the model's checkpoint."""
    return checkpoint.check(spec, settings.home)


class BareVllm:
    """One engine at a time, on a port of its own."""

    def __init__(self, settings: Settings, log: Path, *, can_sleep: bool = False) -> None:
        self._settings = settings
        self._log = log
        self._can_sleep = can_sleep
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, spec: ModelSpec) -> float:
        """Seconds until its health check answers."""
        device, weights = self._settings.device, folder_of(self._settings, spec)
        flags = engine_flags(spec, weights, device, can_sleep=self._can_sleep)
        environment = engine_environment(spec, device, can_sleep=self._can_sleep)
        began = time.monotonic()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, "--host=127.0.0.1", f"--port={self._port}", *flags],
                env=base_environment() | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._is_ready():
            assert self._process.poll() is None, f"vLLM ended: see {self._log}"
            assert time.monotonic() - began < _READY_S, f"vLLM is not ready: see {self._log}"
            time.sleep(0.05)
        return time.monotonic() - began

    def stop(self) -> float:
        """Seconds until nothing of it is left."""
        began = time.monotonic()
        process, self._process = self._process, None
        if process is None:
            return 0.0
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        while members := gpu_lock.session_members(process.pid):
            if time.monotonic() - began > _STOP_S:
                os.killpg(process.pid, signal.SIGKILL)
            psutil.wait_procs(members, timeout=0.05)
        return time.monotonic() - began

    def roots(self) -> list[psutil.Process]:
        assert self._process
        return [psutil.Process(self._process.pid)]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def running(
    settings: Settings, spec: ModelSpec, log: Path, *, can_sleep: bool = False
) -> Iterator[tuple[BareVllm, float]]:
    """The engine of `spec`, and the seconds its start took."""
    engine = BareVllm(settings, log, can_sleep=can_sleep)
    try:
        yield engine, engine.start(spec)
    finally:
        engine.stop()


def measure_switches(
    engine: BareVllm, specs: list[ModelSpec], num_switches: int, samples: Samples
) -> None:
    """Stop, start, first token, to and fro; begins where `specs[0]` serves, or where an earlier
    call has ended."""
    total_s, start_s = [], []
    phases: dict[str, list[float]] = {"stop": [], "start": [], "first token": []}
    for number in range(num_switches):
        spec = specs[(number + 1) % len(specs)]
        began = time.monotonic()
        stop_s = engine.stop()
        start_s.append(engine.start(spec))
        ready = time.monotonic()
        end = wait_first_token(engine.url, spec.name)
        total_s.append(end - began)
        for phase, seconds in zip(phases, (stop_s, start_s[-1], end - ready), strict=True):
            phases[phase].append(seconds)
    samples.add("cold_switch_s", BARE, total_s)
    samples.add("no_service_s", BARE, total_s)  # it serves nobody from its stop on
    samples.add("start_s", BARE, start_s)
    for phase, values in phases.items():
        samples.add(f"phase_s@{phase}", f"{BARE}, restarted", values)


def measure_sleeping(engine: BareVllm, num_times: int, samples: Samples) -> None:
    """A warm switch is one engine's sleep and another one's waking; the first pair is thrown
    away."""
    sleep_ms: list[float] = []
    wake_ms: list[float] = []
    with httpx.Client(base_url=engine.url, timeout=120) as http:
        for _ in range(num_times + 1):
            for path, found in (("/sleep?level=1&mode=wait", sleep_ms), ("/wake_up", wake_ms)):
                began = time.perf_counter()
                http.post(path).raise_for_status()
                found.append(1000 * (time.perf_counter() - began))
    pairs = zip(sleep_ms[1:], wake_ms[1:], strict=True)
    samples.add("warm_ms", CALLS, [sleep + wake for sleep, wake in pairs])
