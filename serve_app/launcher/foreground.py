"""Runs `serve run`, reports its progress, and stops everything it started on Ctrl-C or SIGTERM.

`llm-backend start` runs this module as a program (`python -m serve_app.launcher.foreground CONFIG`)
to launch a server in the background.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from deployments.engine import gpu_lock, standby
from deployments.engine.environment import standby_environment
from deployments.engine.forkserver import start_fork_server
from deployments.host import logs
from deployments.settings import Settings, paths
from serve_app.launcher import haproxy, pidfile, private
from serve_app.launcher.preflight import (
    PreflightError,
    check_all,
    claim,
    machine_needs,
    read_deployment,
)

_POLL_S = 0.25
_STOP_TIMEOUT_S = 40.0
_DEPLOY_FAILED = "Deploying app 'llm-backend' failed"  # Serve's controller writes this to its log

_RAY = {
    # Ray's default is 15: its workers, and the engines they start, would run behind every other
    # busy program.
    "RAY_worker_niceness": "0",
    # The worker that Ray keeps ready for the next replica (`prestart.py`) imports what it needs.
    "RAY_preload_python_modules": "ray.serve._private.replica,deployments.model_server.deployment",
    # Ray's name for "this machine is the whole cluster": Ray then listens on loopback. Otherwise
    # its ports, of which those with metrics need no token, are on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # By default each of Ray's logs grows to 512 MiB, and Ray keeps five old ones.
    "RAY_ROTATION_MAX_BYTES": str(logs.FILE_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": str(logs.NUM_OLD_FILES),
}

_HOW_TO_STOP = "Ctrl-C stops it."

Reporter = Callable[[str], None]


class _Stopped(Exception):
    """The launcher has received SIGINT, SIGTERM or SIGHUP."""


class _Signals:
    """Records SIGINT, SIGTERM and SIGHUP; `check` raises between two steps of the start. A signal
    that interrupted a step could leave a process that the launcher does not know of."""

    def __init__(self) -> None:
        self._is_received = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._record)

    def _record(self, _number: int, _frame: FrameType | None) -> None:
        self._is_received = True

    def check(self) -> None:
        """Raise _Stopped if a signal has been received."""
        if self._is_received:
            raise _Stopped


def run_server(config: Path, report: Reporter) -> int:
    """Check the machine, start the server, report until it is ready, and run until it is stopped.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, 1 after a failure.
    """
    private.close_to_others()
    report = _unfailing(report)
    try:
        host, port, _ = read_deployment(config)
        settings = check_all(config)
        with claim(settings.home):
            return _run(config, settings, host, port, report)
    except PreflightError as exc:
        report(f"Cannot start: {exc}.")
        return 1


def _run(config: Path, settings: Settings, host: str, port: int, report: Reporter) -> int:
    home = settings.home
    deployed = with_address(config, host, port, home)
    log = home / paths.log("serve")
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    logs.set_aside(log)
    signals = _Signals()
    report(f"Profile {settings.profile}: starting Ray and Serve (log: {log})")
    for need in machine_needs(settings):
        report(f"Note: {need.sentence}")
    for exposure in private.exposures(home, os.environ):
        if exposure.is_used:
            report(f"Not private: {exposure.text} ({exposure.remedy})")
    with _environment(settings) as environment, _early_standby(settings):
        address = f"http://{host}:{port}"
        return _run_serve(deployed, settings, address, log, environment, signals, report)


def _unfailing(report: Reporter) -> Reporter:
    """Return `report` without its errors: a closed terminal or pipe must not stop the server."""

    def try_to_report(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is closed
            report(line)

    return try_to_report


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[dict[str, str]]:
    """Yield Serve's environment variables; the folders they name exist while the block runs.

    The application gets the profile that was checked here, and does not look for a card again.
    """
    home = settings.home
    with (
        private.folder(home, "haproxy", Path(tempfile.gettempdir())) as haproxy_folder,
        private.folder(home, "ray", private.temporary_parent(os.environ)) as ray_folder,
    ):
        yield (
            _RAY
            | {"RAY_AUTH_TOKEN_PATH": str(private.make_ray_token(home))}
            | os.environ
            | {"LLM_BACKEND_PROFILE": settings.profile}
            | {"RAY_TMPDIR": str(ray_folder), "TMPDIR": str(ray_folder)}
            | (haproxy.prepare(haproxy_folder) if haproxy.is_wanted() else {})
        )


@contextlib.contextmanager
def _early_standby(settings: Settings) -> Iterator[None]:
    """Start the standby, if the settings want one, so that its imports begin before Ray's."""
    if not standby.may_fork(settings):
        yield
        return
    process, lifeline = start_fork_server(settings.home, standby_environment(settings.device))
    reaper = threading.Thread(target=process.wait, daemon=True)
    reaper.start()
    try:
        yield
    finally:
        os.close(lifeline)
        process.terminate()  # it may still be importing
        reaper.join()


def _run_serve(
    config: Path,
    settings: Settings,
    address: str,
    log: Path,
    environment: dict[str, str],
    signals: _Signals,
    report: Reporter,
) -> int:
    with log.open("a") as output:
        # In its own session Serve does not get the terminal's Ctrl-C: this process gets it, and
        # stops Serve in order.
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    home = settings.home
    try:
        pidfile.note(home, server.pid, address, settings.profile)
        if not _wait_until_ready(address, settings, server, log, signals, report):
            report(_last_lines(log))
            return 1
        pidfile.note_ready(home)
        report(_HOW_TO_STOP)
        while not _has_ended(server, _POLL_S):
            signals.check()
        report(f"Serve ended unexpectedly with exit code {server.returncode}; its log is {log}")
        return 1
    except _Stopped:
        return 0
    finally:
        _stop_server(server, settings, report)
        pidfile.forget(home)


def with_address(config: Path, host: str, port: int, home: Path) -> Path:
    """Return the file to deploy: `config`, or a copy of it in `home` if `host` or `port` (which the
    environment can set) differ from the file's."""
    raw = yaml.safe_load(config.read_text())
    address = {"host": host, "port": port}
    if raw["http_options"] | address == raw["http_options"]:
        return config
    raw["http_options"] |= address
    copy = home / paths.SERVE_CONFIG
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy.write_text(yaml.safe_dump(raw))
    return copy


def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait up to `timeout_s` for the process to end; return whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    return process.returncode is not None


def _wait_until_ready(
    address: str,
    settings: Settings,
    server: subprocess.Popen[bytes],
    log: Path,
    signals: _Signals,
    report: Reporter,
) -> bool:
    """Report the start until it is over.

    Returns:
        True once a model serves, no model should, or the model's load has failed while the server
        itself runs. False if the server has ended, or was not ready in time.

    Raises:
        _Stopped
    """
    is_up = False
    began = time.monotonic()
    deadline = began + settings.switching.load_timeout_s + 120
    while time.monotonic() < deadline:
        signals.check()
        if _has_ended(server, _POLL_S):
            report(f"Serve ended with exit code {server.returncode}:")
            return False
        if _DEPLOY_FAILED in log.read_text(errors="replace"):
            report("Serve could not deploy the application:")
            return False
        health = _get(f"{address}/health")
        state = health.get("state") if health else None
        if health and not is_up:
            is_up = True
            report(f"The server is up after {time.monotonic() - began:.0f} s; loading a model")
        if state == "serving" and health:
            _report_ready(address, health["resident"], report)
            return True
        if state == "idle" and not settings.default_model:
            report(f"Ready on {address} with no model resident.")
            return True
        if state == "failed":
            report(f"Ready on {address}, but no model is resident: {_failure(address)}.")
            return True
    report(f"The server was not ready within {deadline - began:.0f} s:")
    return False


def _report_ready(address: str, resident: str, report: Reporter) -> None:
    body = {"model": resident, "messages": [{"role": "user", "content": "Hello"}]}
    report(f"\nReady: {resident} serves on {address}\n")
    report(
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(body)}'\n"
    )


def _failure(address: str) -> str:
    listing = _get(f"{address}/models") or {"data": []}
    return next((m["reason"] for m in listing["data"] if "reason" in m), "no reason is known")


def _get(url: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310  our own http address
            answer: dict[str, Any] = json.load(response)
            return answer
    except (OSError, ValueError, urllib.error.URLError):
        return None


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join([*lines[-15:], f"(the whole log: {log})"])


def _stop_server(server: subprocess.Popen[bytes], settings: Settings, report: Reporter) -> None:
    """Stop Serve and Ray, then wait until the engine has released the GPU lock."""
    if server.poll() is None:
        server.terminate()
        report("\nStopping")
        if not _has_ended(server, _STOP_TIMEOUT_S):
            server.kill()
    home = settings.home
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while gpu_lock.is_held(home) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    report(
        "Stopped; nothing is left running."
        if not gpu_lock.is_held(home)
        else f"An engine that uses {home} is still running"
    )


def _print(line: str) -> None:
    if line != _HOW_TO_STOP:  # Ctrl-C does not stop a server in the background
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_server(Path(sys.argv[1]), _print))
