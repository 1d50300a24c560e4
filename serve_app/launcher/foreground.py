"""Runs `serve run`: says what happens, and stops everything it started on Ctrl-C or SIGTERM.

As a program, `python -m serve_app.launcher.foreground CONFIG`, it keeps a server in the background.
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

from deployments.engine import gpu_lock
from deployments.engine.forkserver import start_fork_server
from deployments.engine.process import standby_environment
from deployments.host import logs
from deployments.settings import Settings, paths
from deployments.settings.environment import export_file
from serve_app.launcher import haproxy, pidfile, private
from serve_app.launcher.preflight import PreflightError, check_all, claim, read_deployment

_POLL_S = 0.25
_STOP_TIMEOUT_S = 40.0
_DEPLOY_FAILED = "Deploying app 'llm-backend' failed"  # Serve's controller, in its log

_RAY = {
    # Ray's workers run at 15 otherwise, and with them engines, behind whatever else is busy.
    "RAY_worker_niceness": "0",
    # What a model's replica needs, in the worker that is kept ready for it (`prestart.py`).
    "RAY_preload_python_modules": "ray.serve._private.replica,deployments.model_server.deployment",
    # Ray's name for "this machine is the whole cluster": its ports, of which those with metrics
    # need no token, are then on loopback. Else they are on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # A log of Ray's grows to 512 MiB otherwise, and five such are kept.
    "RAY_ROTATION_MAX_BYTES": str(logs.FILE_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": str(logs.NUM_OLD_FILES),
}

_HOW_TO_STOP = "Ctrl-C stops it."

Say = Callable[[str], None]


class _Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""


class _Signals:
    """SIGINT, SIGTERM and SIGHUP, noted, and looked for between two steps: a step that one of them
    broke off could leave a process that no note names."""

    def __init__(self) -> None:
        self._has_one_come = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._has_one_come = True

    def check(self) -> None:
        """Raises _Stopped: one has come."""
        if self._has_one_come:
            raise _Stopped


def run_server(config: Path, say: Say) -> int:
    """Check, start, report until ready, then stay until stopped; returns the exit code."""
    private.close_to_others()
    say = _unfailing(say)
    try:
        host, port, args = read_deployment(config)
        export_file(args.env_path)
        settings = check_all(config)
        with claim(settings.home):
            return _run(config, settings, host, port, say)
    except PreflightError as exc:
        say(f"Can not start: {exc}.")
        return 1


def _run(config: Path, settings: Settings, host: str, port: int, say: Say) -> int:
    home = settings.home
    deployed = with_address(config, host, port, home)
    log = home / paths.log("serve")
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    logs.set_aside(log)
    signals = _Signals()
    say(f"Profile {settings.profile}: starting Ray and Serve (log: {log})")
    for exposure in private.exposures(home, os.environ):
        if exposure.is_used:
            say(f"Not private: {exposure.text} ({exposure.remedy})")
    with _environment(home) as environment, _early_standby(settings):
        address = f"http://{host}:{port}"
        return _run_serve(deployed, settings, address, log, environment, signals, say)


def _unfailing(say: Say) -> Say:
    """Who read the lines may be gone, with the terminal or the pipe: that is to end nothing."""

    def attempt(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is closed
            say(line)

    return attempt


@contextlib.contextmanager
def _environment(home: Path) -> Iterator[dict[str, str]]:
    """What Serve is started in, with the folders of which it speaks."""
    with (
        private.folder(home, "haproxy", Path(tempfile.gettempdir())) as haproxy_folder,
        private.folder(home, "ray", private.temporary_parent(os.environ)) as ray_folder,
    ):
        yield (
            _RAY
            | {"RAY_AUTH_TOKEN_PATH": str(private.make_ray_token(home))}
            | os.environ
            | {"RAY_TMPDIR": str(ray_folder), "TMPDIR": str(ray_folder)}
            | (haproxy.prepare(haproxy_folder) if haproxy.is_wanted() else {})
        )


@contextlib.contextmanager
def _early_standby(settings: Settings) -> Iterator[None]:
    """Where there is to be one, begin its imports before Ray's own."""
    if not settings.standby:
        yield
        return
    process, lifeline = start_fork_server(settings.home, standby_environment())
    reaper = threading.Thread(target=process.wait, daemon=True)
    reaper.start()
    try:
        yield
    finally:
        os.close(lifeline)
        process.terminate()  # it may be at its imports
        reaper.join()


def _run_serve(
    config: Path,
    settings: Settings,
    address: str,
    log: Path,
    environment: dict[str, str],
    signals: _Signals,
    say: Say,
) -> int:
    with log.open("a") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then stops Serve in order.
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
        if not _wait_until_ready(address, settings, server, log, signals, say):
            say(_last_lines(log))
            return 1
        pidfile.note_ready(home)
        say(_HOW_TO_STOP)
        while not _has_ended(server, _POLL_S):
            signals.check()
        say(f"Serve ended by itself with exit code {server.returncode}; its log is {log}")
        return 1
    except _Stopped:
        return 0
    finally:
        _stop_server(server, settings, say)
        pidfile.forget(home)


def with_address(config: Path, host: str, port: int, home: Path) -> Path:
    """The file to deploy: `config`, or a copy where the environment names another address."""
    raw = yaml.safe_load(config.read_text())
    wanted = {"host": host, "port": port}
    if raw["http_options"] | wanted == raw["http_options"]:
        return config
    raw["http_options"] |= wanted
    copy = home / paths.SERVE_CONFIG
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy.write_text(yaml.safe_dump(raw))
    return copy


def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it has, once it has or `timeout_s` are over."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    return process.returncode is not None


def _wait_until_ready(
    address: str,
    settings: Settings,
    server: subprocess.Popen[bytes],
    log: Path,
    signals: _Signals,
    say: Say,
) -> bool:
    """Follow the start; True once a model serves, or nothing should. Raises _Stopped."""
    is_up = False
    began = time.monotonic()
    deadline = began + settings.switching.load_timeout_s + 120
    while time.monotonic() < deadline:
        signals.check()
        if _has_ended(server, _POLL_S):
            say(f"Serve ended with exit code {server.returncode}:")
            return False
        if _DEPLOY_FAILED in log.read_text(errors="replace"):
            say("Serve could not build the graph:")
            return False
        health = _get(f"{address}/health")
        state = health.get("state") if health else None
        if health and not is_up:
            is_up = True
            say(f"The graph is up after {time.monotonic() - began:.0f} s; loading a model")
        if state == "serving" and health:
            _say_ready(address, health["resident"], say)
            return True
        if state == "idle" and not settings.default_model:
            say(f"Ready on {address} with no model resident.")
            return True
        if state == "failed":
            say(f"Ready on {address}, but no model is resident: {_failure(address)}.")
            return True
    say("It did not become ready in time:")
    return False


def _say_ready(address: str, resident: str, say: Say) -> None:
    body = {"model": resident, "messages": [{"role": "user", "content": "Hello"}]}
    say(f"\nReady: {resident} serves on {address}\n")
    say(
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
    return "\n".join([*lines[-15:], f"(all of it: {log})"])


def _stop_server(server: subprocess.Popen[bytes], settings: Settings, say: Say) -> None:
    """End Serve and Ray, and see that the engine is gone too."""
    if server.poll() is None:
        server.terminate()
        say("\nStopping")
        if not _has_ended(server, _STOP_TIMEOUT_S):
            server.kill()
    home = settings.home
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while gpu_lock.is_held(home) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    say(
        "Stopped; nothing is left running."
        if not gpu_lock.is_held(home)
        else f"An engine of {home} is still running"
    )


def _print(line: str) -> None:
    if line != _HOW_TO_STOP:  # in the background it does not
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_server(Path(sys.argv[1]), _print))
