"""`health`, `status`, `models`, `events`: show the server's state and change nothing."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli import tables
from serve_app.cli.connection import FAILED, Connection, Json, connected

if TYPE_CHECKING:
    from serve_app.client import Event

_TIMEOUT_S = 5.0  # a part that does not answer within this time is reported as a problem


def register(app: typer.Typer) -> None:
    for command in (health, status, models, events):
        app.command()(connected(command))


def health(here: Connection, as_json: Json = False) -> None:
    """Show the state of each part of the server, one line each.

    The exit code is 1 if a part has a problem.
    """
    parts = here.run(_parts(here))
    if as_json:
        typer.echo(json.dumps(parts))
    else:
        typer.echo(tables.columns([(p["part"], p["state"], p["detail"]) for p in parts]))
    if any(part["state"] == "problem" for part in parts):
        raise typer.Exit(FAILED)


async def _parts(here: Connection) -> list[dict[str, str]]:
    from serve_app.client import LLMError

    health = await here.client.health_check(_TIMEOUT_S)
    counts = f"{health['in_flight']} in flight, {health['queued']} queued"
    parts = [_part("gateway", "ok", f"{here.url}, {counts}")]
    parts.append(_part("place", *_residency(health)))
    for model in await here.client.models(_TIMEOUT_S):
        has_failed = model["status"] == "failed"
        detail = model.get("reason") or model["status"]
        parts.append(_part(model["id"], "problem" if has_failed else "ok", detail))
    try:
        status = await here.client.status(_TIMEOUT_S)
        parts.append(_part("switchboard", "ok", f"epoch {status['epoch']}"))
        parts.append(_part("dashboard", "ok", str(status["dashboard"])))
    except LLMError as exc:
        parts.append(_part("switchboard", "problem", str(exc)))
    return parts


def _residency(health: dict[str, Any]) -> tuple[str, str]:
    if health["state"] == "failed":
        return "problem", "no model could be loaded"
    if health["state"] == "serving":
        return "ok", f"{health['resident']} serves"
    return "ok", "no model is resident" if health["state"] == "idle" else "a switch is under way"


def _part(part: str, state: str, detail: str) -> dict[str, str]:
    return {"part": part, "state": state, "detail": detail}


def status(here: Connection, as_json: Json = False) -> None:
    """Show the resident model, since when it serves, and until when."""
    status = here.run(here.client.status(_TIMEOUT_S))
    if as_json:
        typer.echo(json.dumps(status))
        return
    listed = here.run(here.client.models(_TIMEOUT_S))
    typer.echo(_residency_table(status, {model["id"]: model for model in listed}))
    for ticket in [status["switch"], *status["queued_switches"]]:
        if ticket:
            eta = "" if ticket["eta_s"] is None else f", about {ticket['eta_s']:.0f} s left"
            typer.echo(f"switch to {ticket['to'] or 'no model'}: {ticket['phase']}{eta}")
    for model, waiting in status["waiting"].items():
        typer.echo(
            f"{waiting['requests']} requests wait for {model}, the longest for "
            f"{waiting['oldest_s']} s"
        )
    for model, failure in status["failures"].items():
        typer.echo(f"{model} failed: {failure['message']}")


def _residency_table(status: dict[str, Any], models: dict[str, dict[str, Any]]) -> str:
    """Return the resident model as a table, like that of `ollama ps`."""
    header = ("MODEL", "TASK", "STATE", "SINCE", "SIZE", "UNTIL")
    if status["resident"] is None:
        return tables.columns([header, ("-", "-", status["state"], "-", "-", "-")])
    name, _, task = status["resident"].partition(":")
    model = models.get(name, {})
    since = status["serving_for_s"]
    row = (
        name,
        task or model.get("task") or "-",
        status["state"],
        "-" if since is None else f"{tables.duration(since)} ago",
        tables.size(model.get("size_bytes")),
        _until(status["lease"], status["resident"]),
    )
    return tables.columns([header, row])


def _until(lease: dict[str, Any] | None, resident: str) -> str:
    if lease is None or lease["model"] != resident:
        return "another model is requested"
    if lease["until"] is None:
        return f"leased to {lease['owner']}"
    left = (datetime.fromisoformat(lease["until"]) - datetime.now(UTC)).total_seconds()
    return f"{tables.duration(max(0.0, left))} from now, leased to {lease['owner']}"


def models(here: Connection, as_json: Json = False) -> None:
    """List the models with status, tasks, context length and checkpoint."""
    listed = here.run(here.client.models(_TIMEOUT_S))
    if as_json:
        typer.echo(json.dumps(listed))
        return
    rows = [("MODEL", "STATUS", "TASKS", "CONTEXT", "CHECKPOINT")]
    for model in listed:
        note = " (untrained)" if model["untrained"] else ""
        context = str(model["max_model_len"])
        tasks = ", ".join(model["tasks"])
        rows.append((model["id"], model["status"], tasks, context, f"{model['root']}{note}"))
    typer.echo(tables.columns(rows))


def events(
    here: Connection,
    as_json: Json = False,
    after: Annotated[
        str | None, typer.Option(help="Print the events after the event with this id.")
    ] = None,
) -> None:
    """Print events (switches, failures, leases) as they happen, until Ctrl-C."""

    async def follow() -> None:
        async for event in here.client.events(after):
            if as_json:
                value = {"id": event.id, "event": event.kind, "data": event.data}
                typer.echo(json.dumps(value))
            elif line := _event_line(event):
                typer.echo(f"{datetime.now():%H:%M:%S}  {line}")

    here.run(follow())


def _event_line(event: "Event") -> str | None:
    """Return one event as a line of text, None for one that is not shown."""
    data = event.data
    match event.kind:
        case "switch":
            error = f": {data['error']['message']}" if data["error"] else ""
            models = f"{data['from'] or 'no model'} -> {data['to'] or 'no model'}"
            return f"{data['id']}  {models}  {data['phase']} after {data['seconds']:.1f} s{error}"
        case "failure":
            return f"{data['model']} failed: {data['message']}"
        case "lease":
            lease = data["lease"]
            return f"lease of {lease['model']} for {lease['owner']}" if lease else "lease ended"
        case "connected":
            return None
        case _:
            return f"{event.kind.replace('_', ' ')} {json.dumps(data) if data else ''}".strip()
