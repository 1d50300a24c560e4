"""Finds what would make a start fail, before anything is started; one sentence each."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import gpu_lock
from deployments.memory.monitor import open_host_memory
from deployments.settings import AppArgs, Settings, SettingsError, check_bound, load_settings, paths
from deployments.settings.environment import read_environment
from serve_app.launcher import pidfile, private

_MIN_FREE_BYTES = 2 * 2**30  # logs, sockets, Ray's session folder with its object spill


class PreflightError(Exception):
    """A reason not to start; the text is one sentence with the remedy."""


def read_deployment(path: Path) -> tuple[str, int, AppArgs]:
    """Host, port and application arguments of a Serve config file; LLM_BACKEND_HOST and
    LLM_BACKEND_PORT beat the file's.

    Raises:
        PreflightError: it cannot be read as one.
    """
    try:
        raw: dict[str, Any] = yaml.safe_load(path.read_text())
        http, args = raw["http_options"], AppArgs(**raw["applications"][0].get("args", {}))
        machine = read_environment(args.env_path)
        return machine.host or http["host"], machine.port or int(http["port"]), args
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as exc:
        raise PreflightError(f"{path} cannot be used: {str(exc).splitlines()[0]}") from exc


def local_settings(args: AppArgs) -> Settings:
    """The settings as they hold on this machine. Raises PreflightError."""
    try:
        return load_settings(args, has_gpu=shutil.which("nvidia-smi") is not None)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc


def check_all(path: Path) -> Settings:
    """Check everything that a start of `path` needs.

    Raises:
        PreflightError: the first thing that is wrong.
    """
    host, port, args = read_deployment(path)
    settings = local_settings(args)
    try:
        check_bound(host, settings)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc
    home = settings.home
    _check_disk(home)
    _check_place(home)
    _check_port(host, port)
    _check_ray()
    if settings.default_model:
        spec = settings.models[settings.default_model]
        try:
            open_host_memory(settings).check(spec, checkpoint.check(spec, home))
        except CheckpointError as exc:
            raise PreflightError(exc.problem.message) from exc
    return settings


def _check_disk(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(home).free
    except OSError as exc:
        raise PreflightError(f"{home} cannot be written: {exc.strerror}") from exc
    if not os.access(home, os.W_OK):
        raise PreflightError(f"{home} cannot be written; name another with LLM_BACKEND_HOME")
    if free < _MIN_FREE_BYTES:
        raise PreflightError(
            f"{home} has {free / 2**30:.1f} GiB free; at least {_MIN_FREE_BYTES >> 30} are needed"
        )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            holder = port_holder(port)
            by_whom = f" by {holder}" if holder else ""
            raise PreflightError(
                f"port {port} is taken{by_whom}; stop that, or change http_options.port "
                "in serve_config.yaml"
            ) from exc


def port_holder(port: int) -> str | None:
    """The program that listens on a port, as `python3 (process 17)`; None where none is seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                name = psutil.Process(connection.pid).name()
                return f"{name} (process {connection.pid})"
    except psutil.Error:
        pass
    return None


def named_ray() -> str | None:
    """The address of the Ray cluster that the environment names. One that only runs here is not
    met: a server's own has a temporary folder of its own."""
    return os.environ.get("RAY_ADDRESS") or None


def _check_ray() -> None:
    address = named_ray()
    if address:
        raise PreflightError(
            f"RAY_ADDRESS names a Ray cluster ({address}), and this server starts its own; unset "
            "it, or deploy to that cluster with `serve deploy serve_config.yaml`"
        )
    parent = private.temporary_parent(os.environ)
    if private.is_too_long(parent):
        raise PreflightError(f"{parent} is too long a path for Ray's sockets; set RAY_TMPDIR=/tmp")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PreflightError(f"{parent} cannot be written; name another folder with RAY_TMPDIR")


def is_serving(home: Path) -> bool:
    """Whether a server on `home` runs: an engine holds its place, or its note names a process."""
    return gpu_lock.is_held(home) or pidfile.find(home) is not None


def _check_place(home: Path) -> None:
    if is_serving(home):
        raise _already_running(home)


@contextmanager
def claim(home: Path) -> Iterator[None]:
    """Start a server on `home`, and keep others from starting one meanwhile.

    Raises:
        PreflightError: another one is started, or runs.
    """
    lock = home / paths.START_LOCK
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise _already_running(home) from exc
        yield


def _already_running(home: Path) -> PreflightError:
    return PreflightError(
        f"a server on {home} is already running; stop it with `llm-backend stop`, or name another "
        "folder with LLM_BACKEND_HOME"
    )
