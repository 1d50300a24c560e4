"""The command line, `llm-backend`."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.doctor_command import doctor
from serve_app.launch import run_server
from serve_app.pull_command import pull
from serve_app.settings import PROJECT

app = typer.Typer(no_args_is_help=True, add_completion=True, help="Three models, one GPU.")


@app.callback()
def _root() -> None:
    """Keeps `start` a command of its own while it is the only one."""


@app.command()
def start(
    config: Annotated[Path, typer.Option(help="The deployment to run.")] = PROJECT
    / "serve_config.yaml",
) -> None:
    """Start the server in the foreground; Ctrl-C stops everything it started."""
    raise typer.Exit(run_server(config, lambda line: typer.echo(line)))


app.command()(doctor)
app.command()(pull)


def main() -> None:
    """Entry point."""
    app()
