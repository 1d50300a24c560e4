"""`llm-backend pull`: downloads the models' checkpoints."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.settings import PROJECT, ModelSpec, Settings, SettingsError
from serve_app.launcher.preflight import PreflightError, local_settings, read_deployment


def pull(
    model: Annotated[str | None, typer.Argument(help="Default: all models.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Move to the newest revision, and say what changed.")
    ] = False,
    default: Annotated[
        bool,
        typer.Option("--default", help="Only the default model, if files of it are missing."),
    ] = False,
    config: Annotated[Path, typer.Option(help="The deployment file.")] = PROJECT
    / "serve_config.yaml",
) -> None:
    """Download the checkpoints that the models' files name; goes on where it was interrupted.

    Every hash is checked. Refused are checkpoints with code of their own, pickles, or links out of
    their folder. Serving never downloads anything.
    """
    try:
        settings = _settings(config)
        specs = _wanted(settings, settings.default_model if default else model, default)
    except (PreflightError, SettingsError) as exc:
        typer.echo(f"Can not pull: {exc}.", err=True)
        raise typer.Exit(2) from exc
    if default and not update:
        specs = [spec for spec in specs if not _is_whole(spec, settings.home)]
    raise typer.Exit(_pull_all(specs, is_update=update))


def _settings(config: Path) -> Settings:
    _, _, args = read_deployment(config)
    return local_settings(args)


def _wanted(settings: Settings, name: str | None, is_default: bool) -> list[ModelSpec]:
    if name is None:
        return [] if is_default else list(settings.models.values())
    if name not in settings.models:
        raise SettingsError(f"no model named {name!r}; there are {', '.join(settings.models)}")
    return [settings.models[name]]


def _is_whole(spec: ModelSpec, home: Path) -> bool:
    """Whether the checkpoint can be loaded as it lies here."""
    try:
        folder = checkpoint.check(spec, home)
    except CheckpointError:
        return False
    revision = f" ({folder.name[:12]})" if checkpoint.is_on_hub(spec) else ""
    typer.echo(f"{spec.name}: {spec.checkpoint}{revision} is here")
    return True


def _pull_all(specs: list[ModelSpec], *, is_update: bool) -> int:
    """Returns the exit code: 1 when one of them could not be had; the others are, all the same."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from deployments.checkpoints.hub import Hub, PullError
    from deployments.checkpoints.pull import pull as pull_one

    if not sys.stderr.isatty():
        disable_progress_bars()
    code, done = 0, set()
    for spec in specs:
        key = (spec.checkpoint, spec.revision)
        if not checkpoint.is_on_hub(spec):
            remedy = "`make models` makes the demo models"
            typer.echo(f"{spec.name}: {spec.checkpoint} is from no hub; {remedy}")
        elif key not in done:
            done.add(key)
            try:
                pull_one(Hub(), spec, typer.echo, is_update=is_update)
            except PullError as exc:
                typer.echo(f"{spec.name}: {exc}.", err=True)
                code = 1
            except KeyboardInterrupt:
                typer.echo("\nStopped; the next pull goes on from here.", err=True)
                return 130
    return code
