"""`logs`: shows the logs of the server's parts, even after they have died."""

import time
from contextlib import ExitStack
from datetime import datetime
from typing import Annotated

import typer

from serve_app.cli.connection import Connection, connected, fail
from serve_app.cli.log_times import moment, since

_POLL_S = 0.3
_MAX_LINES = 5000  # also the number of lines that are searched for --since


def register(app: typer.Typer) -> None:
    app.command()(connected(logs))


def logs(
    here: Connection,
    service: Annotated[
        str, typer.Argument(help="gateway, switchboard, serve, standby, redis, a model, or all.")
    ] = "all",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Also print new lines, until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_MAX_LINES, help="Lines of each log.")
    ] = 50,
    begin: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="Print lines since a time: `10m` or `2h` ago, `14:30`, or a date with a time.",
        ),
    ] = None,
) -> None:
    """Show the logs of the server's parts.

    Without --url they are read from this machine's files, even if the server is dead; with it, from
    the backend there.
    """
    now = datetime.now().astimezone()
    try:
        first = moment(begin, now) if begin else None
    except ValueError:
        raise typer.BadParameter(
            f"{begin!r} is not a time; give `10m`, `2h`, `14:30` or a date with a time.",
            param_hint="--since",
        ) from None
    if here.is_remote:
        here.run(_print_remote(here, service, follow, lines, first, now))
    else:
        _print_local(service, follow, lines, first, now)


def _print_local(
    service: str, follow: bool, num_lines: int, first: datetime | None, now: datetime
) -> None:
    from deployments.settings import PROJECT, default_home
    from deployments.settings.paths import LOGS
    from serve_app.telemetry.log_reader import SERVICES, Follower, paths_of

    home = default_home()
    models = sorted(path.stem for path in (PROJECT / "configs" / "models").glob("*.yaml"))
    paths = paths_of(service, home, models)
    if not paths:
        fail(f"There is no log {service!r}; name one of {', '.join([*SERVICES, *models, 'all'])}.")
    if not follow and not any(path.exists() for path in paths.values()):
        fail(f"There is no log of {service} in {home / LOGS} yet.")
    num_read = num_lines if first is None else _MAX_LINES
    with ExitStack() as opened:
        followers = {}
        for name, path in paths.items():
            followers[name] = Follower(path, num_read)
            opened.callback(followers[name].close)
        for name, follower in followers.items():
            past = follower.past if follow else follower.past + follower.end_line()
            for line in past if first is None else since(past, first, now):
                _print(name, line, service)
        while follow:
            for name, follower in followers.items():
                for line in follower.new_lines():
                    _print(name, line, service)
            time.sleep(_POLL_S)


def _print(name: str, line: str, service: str) -> None:
    typer.echo(f"{name} | {line}" if service == "all" else line)


async def _print_remote(
    here: Connection,
    service: str,
    follow: bool,
    num_lines: int,
    first: datetime | None,
    now: datetime,
) -> None:
    """Print the backend's lines. With `first`, a line without a time is printed if the line before
    it was."""
    num_read = num_lines if first is None else _MAX_LINES
    begun: set[str] = set()  # services whose lines have reached `first`
    async for line in here.client.logs(service, num_read, follow):
        name = line.partition(" | ")[0] if service == "all" else service
        if first is None or name in begun or since([line], first, now):
            begun.add(name)
            typer.echo(line)
