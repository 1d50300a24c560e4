"""`cache stats` and `cache clear`: the response cache."""

import json

import typer

from serve_app.cli import tables
from serve_app.cli.connection import Connection, Json, connected


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Show or clear the response cache.")
    group.command()(connected(stats))
    group.command()(connected(clear))
    app.add_typer(group, name="cache")


def stats(here: Connection, as_json: Json = False) -> None:
    """Show the cache's size, hits and misses."""
    answer = here.run(here.client.ask_admin("GET", "/admin/cache"))
    typer.echo(json.dumps(answer) if as_json else tables.fields(answer))


def clear(here: Connection, as_json: Json = False) -> None:
    """Delete all cached answers."""
    answer = here.run(here.client.ask_admin("DELETE", "/admin/cache"))
    typer.echo(json.dumps(answer) if as_json else tables.fields(answer))
