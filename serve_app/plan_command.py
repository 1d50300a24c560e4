"""`llm-backend plan`: what fits into a card of a size, before anything is downloaded or drained."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.checkpoint import CheckpointProblem, check
from deployments.checkpoint_shape import UnknownShape, shape_of
from deployments.gpu import GpuUnreadable, open_nvml
from deployments.memory_plan import host_room, plan_on_disk, plan_on_paper
from deployments.vram import GIB, MIB, RTX_5080_BYTES, Plan, Room, gib
from serve_app.settings import (
    AppArgs,
    ModelSpec,
    ProfileName,
    Settings,
    SettingsError,
    known_checkpoints,
    load_settings,
)

_SOLD_AS_BYTES = 16 * GIB  # what a card of RTX_5080_BYTES is sold as


class PlanProblem(Exception):
    """Why there is no plan, in one sentence."""


def plan(
    model: Annotated[str | None, typer.Argument(help="One model; without it, all.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="The card: 16GB as sold, or 16303MiB. Default: this one's.")
    ] = None,
    profile: Annotated[ProfileName, typer.Option(help="The profile to plan.")] = "rtx5080",
    checkpoint: Annotated[
        str | None, typer.Option(help="Plan MODEL with another checkpoint.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each model takes of the card's memory, what context fits, and what would help.

    The exit code is 1 where a model does not fit.
    """
    try:
        settings, room, plans = make_plans(model, memory, profile, checkpoint)
    except PlanProblem as exc:
        typer.echo(f"No plan: {exc}.", err=True)
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


def make_plans(
    model: str | None, memory: str | None, profile: ProfileName, checkpoint: str | None
) -> tuple[Settings, Room, list[Plan]]:
    """The plans of one model, or of all, in the room that is asked for.

    Raises:
        PlanProblem: something that was named does not exist, or can not be planned.
    """
    try:
        args = AppArgs()
        settings = load_settings(args, has_gpu=True, profile=profile)
        known = known_checkpoints(Path(args.config_dir))
    except SettingsError as exc:
        raise PlanProblem(str(exc)) from exc
    if model is not None and model not in settings.models:
        raise PlanProblem(f"no model is named {model!r}; there are {', '.join(settings.models)}")
    if checkpoint is not None and model is None:
        raise PlanProblem("--checkpoint needs the model it is for")
    specs = [settings.models[model]] if model else list(settings.models.values())
    if checkpoint is not None:
        specs = [specs[0].model_copy(update={"checkpoint": checkpoint, "revision": None})]
    room = room_of(settings, memory)
    return settings, room, [plan_of(spec, room, settings, known) for spec in specs]


def card_bytes(text: str) -> int:
    """The memory of a card: `16GB` as it is sold, or exactly `16303MiB` or `15.9GiB`.

    Raises:
        PlanProblem: it is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|MiB)\s*", text, re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise PlanProblem(f"{text!r} is not a size like 16GB, 15.9GiB or 16303MiB")
    number, unit = float(found[1]), found[2].lower()
    if unit == "gb":  # the driver keeps about as large a part of each
        return round(number * GIB * RTX_5080_BYTES / _SOLD_AS_BYTES)
    return round(number * (GIB if unit == "gib" else MIB))


def room_of(settings: Settings, memory: str | None = None) -> Room:
    """The card that is named, this machine's, or an RTX 5080 on paper; on the CPU, the host."""
    if settings.device == "cpu":
        if memory is None:
            return host_room(settings.home)
        return Room("cpu", card_bytes(memory))
    if memory is not None:
        return Room("cuda", card_bytes(memory))
    try:
        total_bytes = open_nvml(settings.visible_devices).read().total_bytes
    except GpuUnreadable:  # plan on paper
        total_bytes = None
    return Room("cuda", total_bytes or RTX_5080_BYTES)


def plan_of(
    spec: ModelSpec, room: Room, settings: Settings, known: Mapping[str, Mapping[str, Any]]
) -> Plan:
    """The plan for a model's checkpoint, also where it is not here yet.

    Raises:
        PlanProblem: its shape is not known.
    """
    home = settings.home
    try:
        try:
            return plan_on_disk(spec, check(spec, home), room, home)
        except CheckpointProblem as exc:
            if spec.checkpoint not in known:
                message = f"{exc.problem.message}, and configs/checkpoints.yaml does not know it"
                raise PlanProblem(message) from exc
            return plan_on_paper(spec, shape_of(known[spec.checkpoint]), room, home)
    except UnknownShape as exc:
        raise PlanProblem(f"{spec.checkpoint}: {exc}") from exc


def _text(settings: Settings, room: Room, plans: Sequence[Plan], asleep_bytes: int) -> str:
    """A line a model, and below it what is wrong or worth knowing."""
    first = plans[0]
    what, may = "host", f"{gib(room.available_bytes)} free"
    if room.device == "cuda":
        what, may = "card", f"an engine may fill {gib(first.limit_bytes)}"
        may += f", {gib(first.headroom_bytes)} stay for others"
    head = ("model", "weights", "overhead", "KV/token", "KV room", "tokens", "wanted", "")
    rows = [head, *(_row(p) for p in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [f"{settings.profile}: {what} {gib(room.total_bytes)}; {may}", ""]
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
