"""`llm-backend pull`: downloads the models' checkpoints to this machine."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.host.disk_needs import slow_places
from deployments.settings import PROJECT, ModelSpec, Settings, SettingsError
from deployments.settings.environment import export_file
from serve_app.launcher.preflight import PreflightError, local_settings, read_deployment


def pull(
    model: Annotated[
        str | None, typer.Argument(help="The model's name. Default: all models.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Move to the newest revision, and print the changes.")
    ] = False,
    default: Annotated[
        bool,
        typer.Option(
            "--default",
            help="Only the model that the server loads at its start, and only if a file of it is "
            "missing.",
        ),
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Copy from this folder, without the network: a Hugging Face cache, or, with a "
            "model's name, a folder with the checkpoint's files.",
        ),
    ] = None,
    config: Annotated[Path, typer.Option(help="The deployment file.")] = PROJECT
    / "serve_config.yaml",
) -> None:
    """Download the checkpoints named in the models' files; resume an interrupted download.

    Every hash is checked. A checkpoint that contains code, pickles, or links out of its folder is
    refused. Serving never downloads anything.
    """
    try:
        settings = _settings(config)
        specs = _wanted(settings, settings.default_model if default else model, default)
    except (PreflightError, SettingsError) as exc:
        typer.echo(f"Cannot pull: {exc}.", err=True)
        raise typer.Exit(2) from exc
    if default and not update:
        specs = [spec for spec in specs if not _is_whole(spec, settings.home)]
    for need in slow_places(Path(sys.prefix), os.environ):
        typer.echo(f"Note: {need.sentence}.", err=True)
    if source and model is None and (source.expanduser() / "config.json").is_file():
        typer.echo(f"Cannot pull: name the model whose checkpoint lies in {source}.", err=True)
        raise typer.Exit(2)
    raise typer.Exit(_pull_all(specs, source, is_update=update))


def _settings(config: Path) -> Settings:
    _, _, args = read_deployment(config)
    export_file(args.env_path)  # HF_HOME, before huggingface_hub reads it
    return local_settings(args)


def _wanted(settings: Settings, name: str | None, is_default: bool) -> list[ModelSpec]:
    if name is None:
        return [] if is_default else list(settings.models.values())
    if name not in settings.models:
        models = ", ".join(settings.models)
        raise SettingsError(f"there is no model named {name!r}; name one of {models}")
    return [settings.models[name]]


def _is_whole(spec: ModelSpec, home: Path) -> bool:
    """Whether the model's checkpoint is complete on this machine, downloaded by `pull` or not."""
    try:
        folder = checkpoint.check(spec, home)
    except CheckpointError:
        return False
    revision = f" ({folder.name[:12]})" if checkpoint.is_on_hub(spec) else ""
    typer.echo(f"{spec.name}: {spec.checkpoint}{revision} is already on this machine")
    return True


def _pull_all(specs: list[ModelSpec], source: Path | None, *, is_update: bool) -> int:
    """Bring every checkpoint here, also after a failure; return the exit code, 1 if any failed."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from deployments.checkpoints.folder import FolderHub
    from deployments.checkpoints.hub import Hub, PullError
    from deployments.checkpoints.pull import pull as pull_one

    if not sys.stderr.isatty():
        disable_progress_bars()
    code, done = 0, set()
    for spec in specs:
        key = (spec.checkpoint, spec.revision)
        if not checkpoint.is_on_hub(spec):
            remedy = "`make models` makes the demo models"
            typer.echo(f"{spec.name}: {spec.checkpoint} is not on the Hugging Face Hub; {remedy}")
        elif key not in done:
            done.add(key)
            try:
                hub = FolderHub(source, spec) if source else Hub()
                pull_one(hub, spec, typer.echo, is_update=is_update or bool(source))
            except PullError as exc:
                typer.echo(f"{spec.name}: {exc}.", err=True)
                code = 1
            except KeyboardInterrupt:
                typer.echo("\nStopped; the next pull resumes here.", err=True)
                return 130
    return code
