"""Plans a model's memory, for a checkpoint on this machine or on paper, and for any card."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.checkpoints.checkpoint import CheckpointError, check, is_on_hub
from deployments.checkpoints.shape import UnknownShapeError, shape_of
from deployments.memory.cuda_total import on_paper
from deployments.memory.nvml import GpuReadError, open_nvml
from deployments.memory.plan import GIB, MIB, RTX_5080_BYTES, Plan, Room
from deployments.memory.room import (
    host_room,
    max_share,
    plan_on_disk,
    plan_on_paper,
    usable_bytes,
)
from deployments.settings import (
    AppArgs,
    ModelSpec,
    ProfileName,
    Settings,
    SettingsError,
    known_checkpoints,
    load_settings,
)

if TYPE_CHECKING:
    from deployments.checkpoints.hub import Hub

_SOLD_AS_BYTES = 16 * GIB  # what a card of RTX_5080_BYTES is sold as


class PlanError(Exception):
    """Why there is no plan, in one sentence."""


def make_plans(
    model: str | None,
    memory: str | None,
    profile: ProfileName,
    checkpoint: str | None,
    beside: str | None = None,
) -> tuple[Settings, Room, list[Plan]]:
    """The plans of one model, or of all, in the room that is asked for.

    Raises:
        PlanError: something that was named does not exist, or cannot be planned.
    """
    try:
        args = AppArgs()
        settings = load_settings(args, has_gpu=True, profile=profile)
        known = known_checkpoints(Path(args.config_dir))
    except SettingsError as exc:
        raise PlanError(str(exc)) from exc
    if model is not None and model not in settings.models:
        raise PlanError(f"no model is named {model!r}; there are {', '.join(settings.models)}")
    if checkpoint is not None and model is None:
        raise PlanError("--checkpoint needs the model it is for")
    specs = [settings.models[model]] if model else list(settings.models.values())
    if checkpoint is not None:
        specs = [specs[0].model_copy(update={"checkpoint": checkpoint, "revision": None})]
    room = room_of(settings, memory, beside)
    return settings, room, [plan_of(spec, room, settings, known, _hub) for spec in specs]


def card_bytes(text: str) -> int:
    """The memory of a card: `16GB` as it is sold, or exactly `16303MiB` or `15.9GiB`.

    Raises:
        PlanError: it is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|MiB)\s*", text, re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise PlanError(f"{text!r} is not a size like 16GB, 15.9GiB or 16303MiB")
    number, unit = float(found[1]), found[2].lower()
    if unit == "gb":  # the driver keeps about as large a part of each
        return round(number * GIB * RTX_5080_BYTES / _SOLD_AS_BYTES)
    return round(number * (GIB if unit == "gib" else MIB))


def room_of(settings: Settings, memory: str | None = None, beside: str | None = None) -> Room:
    """The card that is named, this machine's, or an RTX 5080 on paper; on the CPU, the host.

    `beside`: the size of what other programs hold of a card.
    """
    if not settings.place.is_gpu:
        if memory is None:
            return host_room(settings.home)
        return Room("cpu", card_bytes(memory))
    if memory is not None:
        total_bytes = on_paper(card_bytes(memory))
    else:
        try:
            total_bytes = usable_bytes(open_nvml(settings.visible_devices).read())
        except GpuReadError:  # plan on paper
            total_bytes = on_paper(RTX_5080_BYTES)
    free_bytes = None if beside is None else max(0, total_bytes - card_bytes(beside))
    return Room("cuda", total_bytes, free_bytes, max_share=max_share(settings))


def plan_of(
    spec: ModelSpec,
    room: Room,
    settings: Settings,
    known: Mapping[str, Mapping[str, Any]],
    hub: "Callable[[], Hub] | None" = None,
) -> Plan:
    """The plan for a model's checkpoint, also where it is not here yet.

    What is not here is (1) known from configs/checkpoints.yaml, or (2) asked of `hub`. Without one
    the network is not used.

    Raises:
        PlanError: its shape is not known.
    """
    home = settings.home
    try:
        try:
            return plan_on_disk(spec, check(spec, home), room, home)
        except CheckpointError as exc:
            if spec.checkpoint in known:  # (1)
                return plan_on_paper(spec, shape_of(known[spec.checkpoint]), room, home)
            message = f"{exc.problem.message}, and configs/checkpoints.yaml does not know it"
            if hub is None or exc.problem.code != "checkpoint_missing" or not is_on_hub(spec):
                raise PlanError(message) from exc
            return _plan_by_hub(spec, room, home, message, hub())  # (2)
    except UnknownShapeError as exc:
        raise PlanError(f"{spec.checkpoint}: {exc}") from exc


def _plan_by_hub(spec: ModelSpec, room: Room, home: Path, message: str, hub: "Hub") -> Plan:
    from deployments.checkpoints.hub import PullError
    from deployments.checkpoints.remote import look

    try:
        remote = look(hub, spec.checkpoint, spec.revision)
        return plan_on_paper(spec, shape_of(remote.config), room, home, remote.weights_bytes)
    except PullError as exc:
        raise PlanError(f"{message}; {exc}") from exc


def _hub() -> "Hub":
    from deployments.checkpoints.hub import Hub  # its library takes half a second to import

    return Hub()
