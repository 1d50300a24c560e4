"""`switch`, `unload`, `lease`: change the resident model, and keep it resident."""

import getpass
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from serve_app.cli import tables
from serve_app.cli.connection import FAILED, Connection, Json, connected, fail
from serve_app.cli.progress import SwitchProgress, Ticket

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Force = Annotated[bool, typer.Option("--force", help="Cut the requests in flight.")]
Drain = Annotated[
    float | None, typer.Option(min=0, help="Seconds until requests in flight are cut.")
]
Task = Annotated[
    str | None, typer.Option(help="generate or embed. Default: the model's first task.")
]


def register(app: typer.Typer) -> None:
    for command in (switch, unload, lease):
        app.command()(connected(command))


def switch(
    here: Connection,
    model: Model,
    task: Task = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, and change nothing.")
    ] = False,
    force: Force = False,
    drain_timeout_s: Drain = None,
    as_json: Json = False,
) -> None:
    """Make a model resident and show the progress. Ctrl-C does not stop the switch."""
    if dry_run:
        forecast = here.run(here.client.would_switch(model, task=task))
        typer.echo(json.dumps(forecast) if as_json else _describe(forecast))
        return

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.switch(
            model, on_progress, task=task, drain_timeout_s=drain_timeout_s, force=force
        )

    watch(here, ask, as_json)


def unload(
    here: Connection, force: Force = False, drain_timeout_s: Drain = None, as_json: Json = False
) -> None:
    """Unload the resident model; the next request for a model loads it."""

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.unload(on_progress, drain_timeout_s=drain_timeout_s, force=force)

    watch(here, ask, as_json)


def lease(
    here: Connection,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model's name; --end needs none.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes from when the model serves. Default: 10.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds from when the model serves.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="The name shown to other users. Default: user@host.")
    ] = None,
    task: Task = None,
    end: Annotated[
        bool, typer.Option("--end", help="End the lease, whichever owner holds it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep a model resident for a time; only an admin's switch replaces it."""
    if end:
        ended = here.run(here.client.end_lease())
        line = f"The lease of {ended['model']} has ended." if ended else "There was no lease."
        typer.echo(json.dumps(ended) if as_json else line)
        return
    if model is None:
        raise typer.BadParameter("Give a MODEL, or --end.")
    if minutes is not None and seconds is not None:
        raise typer.BadParameter("Give --minutes or --seconds, not both.")
    duration_s = seconds if seconds is not None else 60 * (10 if minutes is None else minutes)
    lease_owner = owner or f"{getpass.getuser()}@{socket.gethostname()}"

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.take_lease(model, duration_s, lease_owner, on_progress, task=task)

    watch(here, ask, as_json)
    if not as_json:
        typer.echo(
            f"{model} stays resident for {tables.duration(duration_s)}; "
            "`llm-backend lease --end` ends the lease."
        )


def watch(
    here: Connection,
    ask: Callable[[Callable[[Ticket], None]], Coroutine[Any, Any, Ticket]],
    as_json: bool,
) -> None:
    """Follow a switch to its end and print the result; the exit code is 1 if it failed."""
    from serve_app.client import DeadlineExceeded, SwitchFailed

    try:
        if as_json:
            typer.echo(json.dumps(here.run(ask(lambda _: None))))
            return
        with SwitchProgress() as shown:
            ticket = here.run(ask(shown.show))
    except SwitchFailed as exc:
        if not as_json:
            fail(str(exc))
        typer.echo(json.dumps(exc.ticket))
        raise typer.Exit(FAILED) from None
    except DeadlineExceeded:
        fail("The time to wait is over; the switch continues in the background.")
    result = f"{ticket['to']} serves" if ticket["to"] else "No model is resident"
    has_run = any(phase["phase"] != "queued" for phase in ticket["phases"])
    duration = f", after {ticket['seconds']:.1f} s" if has_run else " already"
    typer.echo(f"{result}{duration}")


def _describe(forecast: dict[str, Any]) -> str:
    estimate = forecast["estimate_s"]
    lines = [
        f"{forecast['from'] or 'no model'} -> {forecast['to']}",
        f"{forecast['in_flight']} requests in flight would end first",
        f"{forecast['queued_behind']} switches would run before it",
        "the duration is not known yet"
        if estimate is None
        else f"it would take about {estimate:.0f} s",
    ]
    for blocker in forecast["blockers"]:
        lines.append(f"in the way: {_describe_blocker(blocker)}")
    return "\n".join(lines)


def _describe_blocker(blocker: dict[str, Any]) -> str:
    match blocker["kind"]:
        case "lease":
            return f"{blocker['model']} is leased to {blocker['owner']}; the lease would end"
        case "switch":
            return f"a switch to {blocker['to'] or 'no model'} is under way"
        case _:
            return str(blocker.get("message") or blocker)
