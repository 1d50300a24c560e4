"""Starts the server in the background, with a chosen model and profile."""

import contextlib
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from deployments import settings
from deployments.settings import SettingsError, paths
from deployments.switchboard.state_file import SavedState, load_state, save_state
from serve_app.launcher import pidfile
from serve_app.launcher.preflight import (
    PreflightError,
    check_all,
    local_settings,
    read_deployment,
)

_LOOK_S = 0.2
_STOP_S = 120.0


@dataclass(frozen=True)
class Progress:
    """How far a start has come: the lines said since the last look, and where to ask for more."""

    lines: list[str]
    url: str | None  # of a server that answers already, if it does
    is_ready: bool = False
    exit_code: int | None = None  # it has ended


def choose(config: Path, model: str | None, profile: str | None) -> Path:
    """The deployment to start: `config`, or a copy of it with this model and profile.

    The model is also what the server is to remember as wanted: that outlives a restart, and counts
    for more than the file's.

    Raises:
        PreflightError: it cannot be read.
    """
    home = home_of(config)
    chosen = {"default_model": model, "profile": profile}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if not chosen:
        return config
    raw = yaml.safe_load(config.read_text())
    application = raw["applications"][0]
    application["args"] = application.get("args", {}) | chosen
    copy = home / paths.START_CONFIG
    try:
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy.write_text(yaml.safe_dump(raw))
        check_all(copy)
        if model:
            state = home / paths.RESIDENCY
            saved = load_state(state) or SavedState()
            save_state(state, replace(saved, desired=None if model == "none" else model))
    except OSError as exc:
        raise PreflightError(f"{exc.filename} cannot be written: {exc.strerror}") from exc
    return copy


def models_of(config: Path, profile: str | None) -> tuple[list[str], str]:
    """The models of a deployment, and the one that it would load.

    Raises:
        PreflightError: it cannot be read.
    """
    _, _, args = read_deployment(config)
    if profile:
        args = args.model_copy(update={"profile": profile})
    found = local_settings(args)
    saved = load_state(found.home / paths.RESIDENCY)
    wanted = saved.desired if saved and saved.desired in found.models else None
    return [*found.models], wanted or found.default_model or "none"


def home_of(config: Path) -> Path:
    """Where a deployment keeps its state. Raises PreflightError."""
    _, _, args = read_deployment(config)
    try:
        return settings.home_of(args)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc


def start(config: Path) -> Generator[Progress, None, None]:
    """Start the server in a session of its own, which no terminal's end reaches; yields a few times
    a second until it is ready or has ended. Closed before that, it ends what it has started.

    Raises:
        PreflightError: it cannot be started.
    """
    home = check_all(config).home
    log = home / paths.log("start")
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "serve_app.launcher.foreground", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    num_said = 0
    is_settled = False
    try:
        while not is_settled:
            exit_code = keeper.poll()
            server = pidfile.find(home)
            *lines, _ = log.read_text(errors="replace").split("\n")
            is_ready = server is not None and server.is_ready
            is_settled = is_ready or exit_code is not None
            yield Progress(lines[num_said:], server.url if server else None, is_ready, exit_code)
            num_said = len(lines)
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(0 if is_settled else _LOOK_S)
    finally:
        if not is_settled:
            keeper.terminate()
            keeper.wait(_STOP_S)
