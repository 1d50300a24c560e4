"""Starts the server in the background, with the chosen model and profile."""

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

_POLL_S = 0.2
_STOP_S = 120.0


@dataclass(frozen=True)
class Progress:
    """One step of a start: the log lines since the previous step, and the server's address."""

    lines: list[str]
    url: str | None  # None until Serve has been started
    is_ready: bool = False
    exit_code: int | None = None  # None while the launcher runs


def choose(config: Path, model: str | None, profile: str | None) -> Path:
    """Return the deployment file to start: `config`, or a copy of it with this model and profile.

    The model is also written to the saved state: the server loads the model saved there rather than
    the file's default, after a restart too.

    Raises:
        PreflightError: `config` cannot be used, or the copy cannot be written.
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
    """Return the names of a deployment's models, and the name of the model that a start would load
    (`none` for none).

    Raises:
        PreflightError: `config` cannot be used.
    """
    _, _, args = read_deployment(config)
    if profile:
        args = args.model_copy(update={"profile": profile})
    settings = local_settings(args)
    saved = load_state(settings.home / paths.RESIDENCY)
    desired = saved.desired if saved and saved.desired in settings.models else None
    return [*settings.models], desired or settings.default_model or "none"


def home_of(config: Path) -> Path:
    """Return the folder in which a deployment keeps its state. Raises PreflightError."""
    _, _, args = read_deployment(config)
    try:
        return settings.home_of(args)
    except SettingsError as exc:
        raise PreflightError(str(exc)) from exc


def start(config: Path) -> Generator[Progress, None, None]:
    """Start the server in its own session, so that closing the terminal does not end it.

    Yields a few times a second until the server is ready or has ended. Closing the generator
    before that stops the server.

    Raises:
        PreflightError: a check before the start has failed.
    """
    home = check_all(config).home
    log = home / paths.log("start")
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "serve_app.launcher.foreground", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    num_lines = 0
    is_settled = False
    try:
        while not is_settled:
            exit_code = launcher.poll()
            server = pidfile.find(home)
            *lines, _ = log.read_text(errors="replace").split("\n")
            is_ready = server is not None and server.is_ready
            is_settled = is_ready or exit_code is not None
            yield Progress(lines[num_lines:], server.url if server else None, is_ready, exit_code)
            num_lines = len(lines)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(0 if is_settled else _POLL_S)
    finally:
        if not is_settled:
            launcher.terminate()
            launcher.wait(_STOP_S)
