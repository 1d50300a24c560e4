"""Keeps what engines on a GPU were measured to take, which corrects the plan's estimate.

The measure is the driver's: what an engine holds of the card when it is ready, without its weights
and its KV cache. Each load measures anew, as a first load also holds what its compilation took.
"""

import hashlib
import json
import logging
from pathlib import Path

from deployments.host.files import write_whole
from deployments.memory.nvml import GpuReading
from deployments.memory.plan import GIB, Overhead, Plan, gib
from deployments.settings import ModelSpec, paths

logger = logging.getLogger("llm_backend.engine_memory")

# What sizes the KV cache and leaves the overhead as it is: a start with less teaches for more.
_NOT_OVERHEAD = {"max_model_len", "min_model_len", "gpu_memory_utilization"}
# Outside of these another program's memory was taken for the engine's, or the other way round.
_LEAST_BYTES, _MOST_BYTES = 0.2 * GIB, 4.0 * GIB


def engine_bytes(before: GpuReading, ready: GpuReading, pids: set[int]) -> int | None:
    """The card's memory that an engine with the processes `pids` holds when it is ready.

    Where the driver does not tell what a process holds (WSL2): what the card holds more than
    `before` the start. None where it tells neither.
    """
    own_bytes = ready.held_by(pids)
    if own_bytes:
        return own_bytes
    if before.used_bytes is None or ready.used_bytes is None:
        return None
    return ready.used_bytes - before.used_bytes


def learn(spec: ModelSpec, plan: Plan, held_bytes: int, home: Path) -> None:
    """Keep the overhead of an engine of `spec` that `plan` sized and that holds `held_bytes`."""
    overhead_bytes = held_bytes - plan.weights_bytes - plan.kv_cache_bytes
    if not _LEAST_BYTES <= overhead_bytes <= _MOST_BYTES:
        logger.warning(
            "the engine of %s seems to hold %s, and %s of weights and KV cache are planned: the "
            "difference is not taken for its overhead",
            spec.target,
            gib(held_bytes),
            gib(plan.weights_bytes + plan.kv_cache_bytes),
        )
        return
    path = _record(spec, home)
    content = {"settings": _fingerprint(spec), "overhead_bytes": overhead_bytes}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, json.dumps(content))
    except OSError:  # a worse estimate is no reason not to serve
        logger.exception("could not keep %s", path)


def measured_overhead(spec: ModelSpec, home: Path) -> Overhead | None:
    """The overhead of the last engine with the same settings; None where there was none."""
    try:
        kept = json.loads(_record(spec, home).read_text())
        if kept["settings"] == _fingerprint(spec) and type(kept["overhead_bytes"]) is int:
            return Overhead(kept["overhead_bytes"], "measured")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _record(spec: ModelSpec, home: Path) -> Path:
    return home / paths.overhead(spec.name, spec.task)


def _fingerprint(spec: ModelSpec) -> str:
    """Of everything the overhead depends on."""
    settings = spec.model_dump(
        mode="json",
        include={"checkpoint", "revision", "engine", "env", "task"},
        exclude={"engine": _NOT_OVERHEAD},
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
