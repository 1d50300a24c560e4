"""`llm-backend plan`: computes which models fit on a card, before a download or a switch."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import psutil
import typer

from deployments.memory.plan import Plan, Room, gib
from deployments.memory.planner import PlanError, make_plans
from deployments.memory.warm import warm_plans
from deployments.settings import PROJECT, ProfileName, Settings
from deployments.settings.models import left_out


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
    beside: Annotated[
        str | None,
        typer.Option(help="Plan beside other programs that hold so much of the card, as 4GiB."),
    ] = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Show how many engines may sleep (residency: warm).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how much of the card's memory each model takes, which context fits, and what would help.

    The exit code is 1 if a model does not fit.
    """
    try:
        settings, room, plans = make_plans(model, memory, profile, checkpoint, beside)
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
            "warm": [asdict(w) for w in warm_plans(plans)] if warm else None,
        }
        typer.echo(json.dumps(body, indent=2))
    else:
        typer.echo(_text(settings, room, plans, asleep_bytes))
        if warm:
            typer.echo("\n".join(_warm_lines(plans)))
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
    missing = left_out(PROJECT / "configs" / "models", settings.profile)
    lines += [f"{name}: not for this machine, as its file has no block for it." for name in missing]
    lines.append(f"Disk: {gib(asleep_bytes)}; as much host memory, if all were asleep at once.")
    return "\n".join(lines)


def _warm_lines(plans: Sequence[Plan]) -> list[str]:
    """Return one line for each number of sleepers: the card's room and the host's memory."""
    lines = ["", "With residency: warm, beside the model that needs most:"]
    host_bytes = psutil.virtual_memory().total
    for w in warm_plans(plans):
        line = f"  {w.num_sleepers} asleep: "
        if not w.fits_card:
            lines.append(f"{line}does not fit, {gib(-w.card_left_bytes)} are missing")
            continue
        line += f"{gib(w.card_left_bytes)} of the card stay free"
        line += "" if w.has_room_for_desktop else ", too little for a desktop with a browser"
        line += f"; {gib(w.host_needed_bytes)} of host memory"
        if w.host_needed_bytes > host_bytes:
            line += f", and this host has {gib(host_bytes)}"
        lines.append(line)
    lines.append(
        "  That a sleeper keeps 0.5 GiB of the card is an estimate. Measure it: make test-gpu"
    )
    return lines


def _row(p: Plan) -> tuple[str, ...]:
    return (
        p.model,
        gib(p.weights_bytes),
        f"{'~' if p.overhead_source == 'estimate' else ''}{gib(p.overhead_bytes)}",
        f"{'fp8 ' if p.kv_cache_dtype == 'fp8' else ''}{p.kv_bytes_per_token:,} B",
        gib(p.kv_room_bytes),
        f"{p.kv_room_tokens:,}",
        f"{p.context_wanted_tokens:,}",
        _verdict(p),
    )


def _verdict(p: Plan) -> str:
    if p.is_shortened:
        return f"fits with {p.context_tokens:,} tokens"
    return "fits" if p.fits else "DOES NOT FIT"
