"""Plans a checkpoint that lies on this machine, in the memory that this machine has."""

import json
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.checkpoints import checkpoint
from deployments.checkpoints.shape import Shape, UnknownShapeError, shape_of
from deployments.engine import gpu_lock
from deployments.host.platform import is_wsl
from deployments.memory.cuda_total import on_paper
from deployments.memory.gpu_wait import describe_process
from deployments.memory.nvml import GpuReader, GpuReading
from deployments.memory.overhead import measured_overhead
from deployments.memory.plan import (
    GIB,
    MAX_SHARE_WSL2,
    Plan,
    Room,
    overhead_estimate,
    plan,
)
from deployments.memory.warm import SLEEPER_BYTES
from deployments.settings import ModelSpec, Settings

_NUM_HOLDERS_NAMED = 3


def plan_on_disk(spec: ModelSpec, folder: Path, room: Room, home: Path) -> Plan:
    """The plan for the checkpoint in `folder`. Raises UnknownShapeError."""
    try:
        shape = shape_of(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as exc:
        raise UnknownShapeError(f"{folder}: {exc}") from exc
    return _plan(spec, shape, checkpoint.tensor_bytes(folder), room, home)


def plan_on_paper(
    spec: ModelSpec, shape: Shape, room: Room, home: Path, weights_bytes: int | None = None
) -> Plan:
    """The plan for a checkpoint that is not here. Raises UnknownShapeError.

    `weights_bytes`: as the hub lists its files; without, the tensors are counted.
    """
    if weights_bytes is None:
        weights_bytes = shape.weights_bytes()
    return _plan(spec, shape, weights_bytes, room, home)


def _plan(spec: ModelSpec, shape: Shape, weights_bytes: int, room: Room, home: Path) -> Plan:
    measured = measured_overhead(spec, home) if room.device == "cuda" else None
    space = spec.env.get("VLLM_CPU_KVCACHE_SPACE")
    return plan(
        spec.name,
        spec.checkpoint,
        shape,
        spec.engine,
        room,
        weights_bytes=weights_bytes,
        overhead=measured or overhead_estimate(spec.vision, room.device),
        kv_space_bytes=int(float(space) * GIB) if space else None,
    )


def host_room(home: Path) -> Room:
    """The memory of this machine; what its present engines hold comes back with an unload."""
    memory = psutil.virtual_memory()
    return Room(
        "cpu",
        total_bytes=memory.total,
        free_bytes=memory.available,
        returned_bytes=sum(session_bytes(session) for _, session in gpu_lock.holders(home)),
    )


def card_room(card: GpuReader, settings: Settings) -> Room:
    """The memory of the card; what the engine that is awake holds comes back with an unload.

    In warm mode it stays as a sleeper, and those that sleep already give nothing back. Where the
    driver does not tell what a process holds (WSL2, other process numbers in a container), the
    engines count with what their settings let the one that is awake fill.
    """
    reading = card.read()
    total_bytes = usable_bytes(reading)
    engines = gpu_lock.holders(settings.home)
    pids = [{p.pid for p in gpu_lock.session_members(session)} for _, session in engines]
    held_bytes = [reading.held_by(own) for own in pids]
    if any(held_bytes):
        returned_bytes = max(held_bytes)  # only one is awake
    else:
        specs = [settings.models[model] for model, _ in engines if model in settings.models]
        share = max((spec.engine.gpu_memory_utilization or 0 for spec in specs), default=0)
        returned_bytes = int(min(share, max_share(settings)) * total_bytes)
    if settings.is_warm:
        returned_bytes = max(0, returned_bytes - SLEEPER_BYTES)
    own_pids = set().union(*pids)
    others = [p for p in reading.processes if p.pid not in own_pids and p.used_bytes]
    return Room(
        "cuda",
        total_bytes=total_bytes,
        free_bytes=reading.free_bytes or 0,
        returned_bytes=returned_bytes,
        holders=tuple(f"process {describe_process(p)}" for p in others[:_NUM_HOLDERS_NAMED]),
        max_share=max_share(settings),
    )


def usable_bytes(reading: GpuReading) -> int:
    """The card's memory as its programs can have it."""
    return reading.cuda_total_bytes or on_paper(reading.total_bytes or 0)


def max_share(settings: Settings) -> float:
    """The largest share of the card for one engine; a share that the user set stands."""
    return MAX_SHARE_WSL2 if is_wsl() and settings.utilization is None else 1.0


def session_bytes(session: int) -> int:
    """What the processes of one session hold of this machine's memory, shared pages in parts."""
    total = 0
    for process in gpu_lock.session_members(session):
        with suppress(psutil.Error, OSError):  # it has just ended
            total += process.memory_full_info().pss
    return total
