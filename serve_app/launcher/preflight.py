"""Checks made before anything starts; each failure is one sentence that names the fix."""

import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import gpu_lock
from deployments.engine.flag_check import check_flags
from deployments.host import needs
from deployments.host.card import FoundCard, find_card
from deployments.host.disk_needs import home_needs, slow_places
from deployments.memory.monitor import open_host_memory
from deployments.settings import AppArgs, Settings, SettingsError, check_bound, load_settings, paths
from deployments.settings.environment import export_file, read_environment
from serve_app.launcher import pidfile, private

_MIN_FREE_BYTES = 2 * 2**30  # logs, sockets, Ray's session folder with its object spill


class PreflightError(Exception):
    """A reason not to start. The text is one sentence with the remedy, without a full stop."""


def read_deployment(path: Path) -> tuple[str, int, AppArgs]:
    """Return host, port and application arguments of a Serve config file. LLM_BACKEND_HOST and
    LLM_BACKEND_PORT take precedence over the file.

    Raises:
        PreflightError: the file, or `.env`, cannot be read or is invalid.
    """
    try:
        raw: dict[str, Any] = yaml.safe_load(path.read_text())
        http, args = raw["http_options"], AppArgs(**raw["applications"][0].get("args", {}))
        environment = read_environment(args.env_path)
        return environment.host or http["host"], environment.port or int(http["port"]), args
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as exc:
        raise PreflightError(f"{path} cannot be used: {str(exc).splitlines()[0]}") from exc


def local_settings(args: AppArgs) -> Settings:
    """Load the settings for this machine. Raises PreflightError."""
    try:
        return load_settings(args, has_gpu=_card().is_there)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc


def _card() -> FoundCard:
    return find_card(os.environ.get("CUDA_VISIBLE_DEVICES"))


def machine_needs(settings: Settings) -> Iterator[needs.Need]:
    """What this machine lacks to serve with `settings`, and what will be slow."""
    yield from home_needs(settings.home)
    if settings.device == "cuda":
        yield from needs.card_needs(_card())
    yield from needs.package_needs(settings.profile, Path(sys.prefix))
    if settings.device == "cuda":
        yield from needs.compiler_needs(os.environ)
        yield from needs.nvcc_needs(os.environ)
        yield from slow_places(Path(sys.prefix), os.environ)


def check_all(path: Path) -> Settings:
    """Check everything that a start of the deployment file `path` needs.

    Raises:
        PreflightError: the first check that fails.
    """
    host, port, args = read_deployment(path)
    export_file(args.env_path)  # HF_HOME, before huggingface_hub reads it
    settings = local_settings(args)
    try:
        check_bound(host, settings)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc
    home = settings.home
    _check_machine(settings)
    _check_disk(home)
    try:
        check_flags(settings)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc
    _check_not_running(home)
    _check_port(host, port)
    _check_ray()
    if settings.default_model:
        spec = settings.models[settings.default_model]
        try:
            open_host_memory(settings).check(spec, checkpoint.check(spec, home))
        except CheckpointError as exc:
            raise PreflightError(exc.problem.message) from exc
    return settings


def _check_machine(settings: Settings) -> None:
    wall = next((need for need in machine_needs(settings) if need.is_wall), None)
    if wall:
        raise PreflightError(wall.sentence)


def _check_disk(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(home).free
    except OSError as exc:
        raise PreflightError(f"{home} cannot be written: {exc.strerror}") from exc
    if not os.access(home, os.W_OK):
        raise PreflightError(
            f"{home} cannot be written; set LLM_BACKEND_HOME to a folder that you can write"
        )
    if free < _MIN_FREE_BYTES:
        raise PreflightError(
            f"the disk of {home} has {free / 2**30:.1f} GiB free, and the server needs "
            f"{_MIN_FREE_BYTES >> 30} GiB; free some space, or set LLM_BACKEND_HOME to a folder on "
            "another disk"
        )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            holder = port_holder(port)
            by_holder = f" by {holder}" if holder else ""
            raise PreflightError(
                f"port {port} is taken{by_holder}; stop that program, or change http_options.port "
                "in serve_config.yaml"
            ) from exc


def port_holder(port: int) -> str | None:
    """Return the program that uses a port, as `python3 (process 17)`. None if there is none, or it
    belongs to another user."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                name = psutil.Process(connection.pid).name()
                return f"{name} (process {connection.pid})"
    except psutil.Error:
        pass
    return None


def named_ray() -> str | None:
    """Return the address of the Ray cluster that RAY_ADDRESS names. Other clusters on this machine
    do not matter: a server's own cluster has its own temporary folder."""
    return os.environ.get("RAY_ADDRESS") or None


def _check_ray() -> None:
    address = named_ray()
    if address:
        raise PreflightError(
            f"RAY_ADDRESS names a Ray cluster ({address}), and this server starts its own; unset "
            "RAY_ADDRESS, or deploy to that cluster with `serve deploy serve_config.yaml`"
        )
    parent = private.temporary_parent(os.environ)
    if private.is_too_long(parent):
        raise PreflightError(
            f"the path {parent} is too long for Ray's sockets; set RAY_TMPDIR=/tmp"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PreflightError(
            f"{parent} cannot be written; set RAY_TMPDIR to a folder that you can write"
        )


def is_serving(home: Path) -> bool:
    """Whether a server runs on `home`: an engine holds the GPU lock, or the PID file is in use."""
    return gpu_lock.is_held(home) or pidfile.find(home) is not None


def _check_not_running(home: Path) -> None:
    if is_serving(home):
        raise _already_running(home)


@contextmanager
def claim(home: Path) -> Iterator[None]:
    """Hold the start lock of `home`, so that no second server starts on it.

    Raises:
        PreflightError: another server holds it.
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
        f"a server on {home} is already running; stop it with `llm-backend stop`, or set "
        "LLM_BACKEND_HOME to another folder"
    )
