"""`switch`, `unload`, `lease`: change which model is resident, and for how long."""

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
Force = Annotated[bool, typer.Option("--force", help="Cut requests in flight.")]
Drain = Annotated[
    float | None, typer.Option(min=0, help="Seconds until requests in flight are cut.")
]
Task = Annotated[
    str | None, typer.Option(help="generate or embed; default: the model's first task.")
]


def register(app: typer.Typer) -> None:
    for command in (switch, unload, lease):
        app.command()(connected(command))


def switch(
    here: Connection,
    model: Model,
    task: Task = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")
    ] = False,
    force: Force = False,
    drain_timeout_s: Drain = None,
    as_json: Json = False,
) -> None:
    """Make a model resident, and watch it. Ctrl-C ends the watching, not the switch."""
    if dry_run:
        would = here.run(here.client.would_switch(model, task=task))
        typer.echo(json.dumps(would) if as_json else _describe(would))
        return

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.switch(
            model, on_progress, task=task, drain_timeout_s=drain_timeout_s, force=force
        )

    watch(here, ask, as_json)


def unload(
    here: Connection, force: Force = False, drain_timeout_s: Drain = None, as_json: Json = False
) -> None:
    """Empty the GPU until a model is requested."""

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.unload(on_progress, drain_timeout_s=drain_timeout_s, force=force)

    watch(here, ask, as_json)


def lease(
    here: Connection,
    model: Annotated[str | None, typer.Argument(metavar="MODEL")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long, from when it serves.")] = None,
    seconds: Annotated[float | None, typer.Option(help="The same in seconds.")] = None,
    owner: Annotated[str | None, typer.Option(help="Shown to others; default: user@host.")] = None,
    task: Task = None,
    end: Annotated[
        bool, typer.Option("--end", help="End the lease, whichever owner holds it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep a model resident for a time (default: 10 minutes). An admin's switch ends the lease."""
    if end:
        ended = here.run(here.client.end_lease())
        said = f"The lease of {ended['model']} has ended." if ended else "There was no lease."
        typer.echo(json.dumps(ended) if as_json else said)
        return
    if model is None:
        raise typer.BadParameter("Name a model, or say --end.")
    if minutes is not None and seconds is not None:
        raise typer.BadParameter("Say --minutes or --seconds, not both.")
    duration_s = seconds if seconds is not None else 60 * (10 if minutes is None else minutes)
    who = owner or f"{getpass.getuser()}@{socket.gethostname()}"

    def ask(on_progress: Callable[[Ticket], None]) -> Coroutine[Any, Any, Ticket]:
        return here.client.take_lease(model, duration_s, who, on_progress, task=task)

    watch(here, ask, as_json)
    if not as_json:
        typer.echo(f"{model} stays for {tables.duration(duration_s)}; `lease --end` ends that.")


def watch(
    here: Connection,
    ask: Callable[[Callable[[Ticket], None]], Coroutine[Any, Any, Ticket]],
    as_json: bool,
) -> None:
    """Follow a switch to its end, and say how it ended; fails if it did not do what it should."""
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
        fail("The switch goes on, and is no longer watched.")
    what = f"{ticket['to']} serves" if ticket["to"] else "No model is resident"
    is_new = any(phase["phase"] != "queued" for phase in ticket["phases"])
    had_to = f", after {ticket['seconds']:.1f} s" if is_new else " already"
    typer.echo(f"{what}{had_to}")


def _describe(would: dict[str, Any]) -> str:
    estimate = would["estimate_s"]
    lines = [
        f"{would['from'] or 'no model'} -> {would['to']}",
        f"{would['in_flight']} in flight would end first",
        f"{would['queued_behind']} switches would come before it",
        "how long it takes is not known yet" if estimate is None else f"some {estimate:.0f} s",
    ]
    for blocker in would["blockers"]:
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
