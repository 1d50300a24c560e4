"""`llm-backend plan`: computes which models fit on a card, before a download or a switch."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from deployments.memory.plan import Plan, Room, gib
from deployments.memory.planner import PlanError, make_plans
from deployments.settings import ProfileName, Settings


def plan(
    model: Annotated[
        str | None, typer.Argument(help="The model's name. Default: all models.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="The card's memory: 16GB as sold, or 16303MiB. Default: this machine's card."
        ),
    ] = None,
    profile: Annotated[ProfileName, typer.Option(help="The profile to plan.")] = "rtx5080",
    checkpoint: Annotated[
        str | None, typer.Option(help="Plan MODEL with another checkpoint.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how much of the card's memory each model takes, which context fits, and what would help.

    The exit code is 1 if a model does not fit.
    """
    try:
        settings, room, plans = make_plans(model, memory, profile, checkpoint)
    except PlanError as exc:
        typer.echo(f"Cannot plan: {exc}.", err=True)
        raise typer.Exit(2) from exc
    asleep_bytes = sum(p.weights_bytes for p in plans)
    if as_json:
        totals = {"disk_bytes": asleep_bytes, "host_bytes_all_asleep": asleep_bytes}
        body = {
            "profile": settings.profile,
            "total_bytes": room.total_bytes,
            "models": [asdict(p) for p in plans],
            "together": totals,
        }
        typer.echo(json.dumps(body, indent=2))
    else:
        typer.echo(_text(settings, room, plans, asleep_bytes))
    raise typer.Exit(0 if all(p.fits for p in plans) else 1)


def _text(settings: Settings, room: Room, plans: Sequence[Plan], asleep_bytes: int) -> str:
    """Return one line for each model, then the problems and notes of each."""
    first = plans[0]
    device, limits = "host", f"{gib(room.available_bytes)} free"
    if room.device == "cuda":
        device, limits = "card", f"an engine may fill {gib(first.limit_bytes)}"
        limits += f", {gib(first.headroom_bytes)} stay for others"
    head = ("model", "weights", "overhead", "KV/token", "KV room", "tokens", "wanted", "")
    rows = [head, *(_row(p) for p in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [f"{settings.profile}: {device} {gib(room.total_bytes)}; {limits}", ""]
    for row in rows:
        cells = [c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
    lines.append("")
    for p in plans:
        if p.reason:
            lines.append(f"{p.model} does not fit: {p.reason}.")
            lines += [f"  would help: {remedy}" for remedy in p.advice]
        else:
            lines += [f"{p.model}: {note}." for note in p.advice]
    if any(p.overhead_source == "estimate" for p in plans):
        lines.append("~ an estimate, until the engine has measured it at its first start.")
    lines.append(f"Disk: {gib(asleep_bytes)}; as much host memory, if all were asleep at once.")
    return "\n".join(lines)


def _row(p: Plan) -> tuple[str, ...]:
    return (
        p.model,
        gib(p.weights_bytes),
        f"{'~' if p.overhead_source == 'estimate' else ''}{gib(p.overhead_bytes)}",
        f"{'fp8 ' if p.kv_cache_dtype == 'fp8' else ''}{p.kv_bytes_per_token:,} B",
        gib(p.kv_room_bytes),
        f"{p.kv_room_tokens:,}",
        f"{p.context_wanted_tokens:,}",
        "fits" if p.fits else "DOES NOT FIT",
    )
