"""Plans a checkpoint that lies on this machine, in the memory that this machine has."""

import json
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.checkpoints import checkpoint
from deployments.checkpoints.shape import Shape, UnknownShapeError, shape_of
from deployments.engine import gpu_lock
from deployments.memory.gpu_wait import describe_process
from deployments.memory.nvml import GpuReader
from deployments.memory.overhead import measured_overhead
from deployments.memory.plan import GIB, Plan, Room, overhead_estimate, plan
from deployments.settings import ModelSpec, Settings

_NUM_HOLDERS_NAMED = 3


def plan_on_disk(spec: ModelSpec, folder: Path, room: Room, home: Path) -> Plan:
    """The plan for the checkpoint in `folder`. Raises UnknownShapeError."""
    try:
        shape = shape_of(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as exc:
        raise UnknownShapeError(f"{folder}: {exc}") from exc
    return _plan(spec, shape, checkpoint.tensor_bytes(folder), room, home)


def plan_on_paper(spec: ModelSpec, shape: Shape, room: Room, home: Path) -> Plan:
    """The plan for a checkpoint that is not here. Raises UnknownShapeError."""
    return _plan(spec, shape, shape.weights_bytes(), room, home)


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
    """The memory of the card; what its present engines hold comes back with an unload.

    Where the driver does not tell what a process holds (WSL2, other process numbers in a
    container), they count with what their settings let the one that is awake fill.
    """
    reading = card.read()
    total_bytes, free_bytes = reading.total_bytes or 0, reading.free_bytes or 0
    engines = gpu_lock.holders(settings.home)
    own = {p.pid for _, session in engines for p in gpu_lock.session_members(session)}
    returned_bytes = sum(p.used_bytes or 0 for p in reading.processes if p.pid in own)
    if not returned_bytes:
        specs = [settings.models[model] for model, _ in engines if model in settings.models]
        share = max((spec.engine.gpu_memory_utilization or 0 for spec in specs), default=0)
        returned_bytes = int(share * total_bytes)
    others = [p for p in reading.processes if p.pid not in own and p.used_bytes]
    return Room(
        "cuda",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        returned_bytes=returned_bytes,
        holders=tuple(f"process {describe_process(p)}" for p in others[:_NUM_HOLDERS_NAMED]),
    )


def session_bytes(session: int) -> int:
    """What the processes of one session hold of this machine's memory, shared pages in parts."""
    total = 0
    for process in gpu_lock.session_members(session):
        with suppress(psutil.Error, OSError):  # it has just ended
            total += process.memory_full_info().pss
    return total
