"""`llm-backend add`: writes a model's file for a checkpoint on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.host.files import write_whole
from deployments.memory.planner import PlanError, room_of
from deployments.settings import AppArgs, SettingsError, load_settings
from deployments.settings.models import Task


def add(
    repo: Annotated[str, typer.Argument(help="The checkpoint's name on the hub: Qwen/Qwen3-8B.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name. Default: from the checkpoint's.")
    ] = None,
    task: Annotated[
        Task | None, typer.Option(help="What it is to do. Default: as its files say.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write/--print", help="Write the file, or only print it.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a file; write one of a model that does not fit."),
    ] = False,
) -> None:
    """Write configs/models/NAME.yaml for a checkpoint on the hub, and show the plan for the card.

    Only small files are downloaded. A checkpoint with code or pickles is refused. The exit code is
    1 if the model does not fit.
    """
    from deployments.checkpoints.hub import Hub, PullError
    from deployments.checkpoints.remote import look
    from serve_app.cli.fitting import model_file, plan_lines
    from serve_app.cli.model_file import DraftError, name_of

    try:
        args = AppArgs()
        settings = load_settings(args, has_gpu=True, profile="rtx5080")
        name = name or name_of(repo)
        path = Path(args.config_dir) / "models" / f"{name}.yaml"
        if write and path.exists() and not force:
            raise DraftError(f"{path} is there already; --name names another, --force replaces it")
        text, made = model_file(look(Hub(), repo, None), name, task, room_of(settings), settings)
        is_written = write and (made is None or made.fits or force)
        if is_written:
            write_whole(path, text)
    except (SettingsError, PlanError, DraftError, PullError, OSError) as exc:
        typer.echo(f"Cannot add {repo}: {exc}.", err=True)
        raise typer.Exit(2) from exc
    if not write:
        typer.echo(text)
    typer.echo("\n".join(plan_lines(name, made)), err=not write)
    if is_written:
        typer.echo(f"Wrote {path}. Look it over; then: llm-backend pull {name}, and restart.")
    elif write:
        typer.echo("Nothing was written; --force writes it all the same.")
    raise typer.Exit(0 if made is None or made.fits else 1)
