"""The memory plan: what a model takes, what is left for its KV cache, and what would make it fit.

PURE. The estimates of the overhead are corrected by what an engine has reported
(`deployments/memory/overhead.py`); everything else is arithmetic on the checkpoint's own numbers.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from deployments.checkpoints.shape import Shape
from deployments.settings import EngineSettings

GIB = 2**30
MIB = 2**20
# What the driver of an RTX 5080 reports as its whole memory.
RTX_5080_BYTES = 16303 * MIB

# Besides weights and KV cache: CUDA context, activations of one step, graphs; a vision tower's
# step is larger. An estimate, until an engine has reported its own.
_OVERHEAD_BYTES = {"text": 1.2 * GIB, "vision": 2.0 * GIB}
# Python processes with torch and vLLM: 0.6 to 0.8 GiB of their own, measured, where they are forked
# from the standby, which shares its imports with them; more where they are started plainly.
_CPU_OVERHEAD_BYTES = 1.5 * GIB

# Tokens in a block of KV cache, vLLM's default. One block of the pool is never handed out.
_BLOCK_TOKENS = {"cuda": 16, "cpu": 128}
_VLLM_UTILIZATION = 0.92  # vLLM's default share of the card

# Above it the desktop, a browser and a player do not fit beside the engine.
_ADVISED_HEADROOM_BYTES = 1.5 * GIB
_MAX_ADVISED_UTILIZATION = 0.90
_TIGHT_BYTES = 0.1 * GIB

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Overhead:
    """What an engine takes besides weights and KV cache."""

    size_bytes: int
    source: Literal["estimate", "measured"]


@dataclass(frozen=True)
class Room:
    """The memory that an engine is to fit into: the card's, or the host's where there is none."""

    device: Device
    total_bytes: int
    free_bytes: int | None = None  # now; None where it cannot be read, or on a card on paper
    returned_bytes: int = 0  # by the engine that serves now, when it is unloaded
    holders: tuple[str, ...] = ()  # who has the rest, the largest first

    @property
    def available_bytes(self) -> int:
        """What is free once the engine that serves now is gone."""
        if self.free_bytes is None:
            return self.total_bytes
        return min(self.free_bytes + self.returned_bytes, self.total_bytes)


@dataclass(frozen=True)
class Plan:
    """One model in one room. `limit` is what its engine may fill, `needed` what it has to have."""

    model: str
    checkpoint: str
    device: Device
    total_bytes: int
    free_bytes: int | None
    available_bytes: int
    limit_bytes: int
    weights_bytes: int
    overhead_bytes: int
    overhead_source: Literal["estimate", "measured"]
    kv_cache_dtype: str
    kv_bytes_per_token: int
    kv_wanted_bytes: int  # for the context that is wanted
    kv_room_bytes: int
    kv_room_tokens: int
    context_wanted_tokens: int
    context_fits_tokens: int  # no more than the model was trained for
    needed_bytes: int
    headroom_bytes: int  # of the whole memory, left for other programs
    disk_bytes: int
    fits: bool
    reason: str | None  # why it does not fit
    advice: tuple[str, ...]


def overhead_estimate(is_vision: bool, device: Device) -> Overhead:
    """For an engine that has not reported yet."""
    if device == "cpu":
        return Overhead(int(_CPU_OVERHEAD_BYTES), "estimate")
    return Overhead(int(_OVERHEAD_BYTES["vision" if is_vision else "text"]), "estimate")


def plan(
    model: str,
    checkpoint: str,
    shape: Shape,
    engine: EngineSettings,
    room: Room,
    *,
    weights_bytes: int,
    overhead: Overhead,
    kv_space_bytes: int | None = None,
) -> Plan:
    """Plan `checkpoint` under `engine`'s settings in `room`.

    `kv_space_bytes`: the KV cache's fixed size (VLLM_CPU_KVCACHE_SPACE); only on the CPU, where
    the share of the memory sets nothing.
    """
    per_token = shape.kv_bytes_per_token(engine.kv_cache_dtype if room.device == "cuda" else "auto")
    block_bytes = per_token * _BLOCK_TOKENS[room.device]
    # one block more, which vLLM keeps back
    wanted_bytes = (math.ceil(engine.max_model_len / _BLOCK_TOKENS[room.device]) + 1) * block_bytes
    fixed_bytes = weights_bytes + overhead.size_bytes
    if room.device == "cuda":
        utilization = engine.gpu_memory_utilization or _VLLM_UTILIZATION
        limit_bytes = int(room.total_bytes * utilization)
        kv_room_bytes = limit_bytes - fixed_bytes
    else:
        kv_room_bytes = wanted_bytes if kv_space_bytes is None else kv_space_bytes
        limit_bytes = room.available_bytes
    num_blocks = max(kv_room_bytes // block_bytes - 1, 0)
    kv_room_tokens = num_blocks * _BLOCK_TOKENS[room.device]
    made = Plan(
        model=model,
        checkpoint=checkpoint,
        device=room.device,
        total_bytes=room.total_bytes,
        free_bytes=room.free_bytes,
        available_bytes=room.available_bytes,
        limit_bytes=limit_bytes,
        weights_bytes=weights_bytes,
        overhead_bytes=overhead.size_bytes,
        overhead_source=overhead.source,
        kv_cache_dtype=engine.kv_cache_dtype if room.device == "cuda" else "auto",
        kv_bytes_per_token=per_token,
        kv_wanted_bytes=wanted_bytes,
        kv_room_bytes=max(kv_room_bytes, 0),
        kv_room_tokens=kv_room_tokens,
        context_wanted_tokens=engine.max_model_len,
        context_fits_tokens=min(kv_room_tokens, shape.max_context_tokens),
        needed_bytes=fixed_bytes + (wanted_bytes if room.device == "cuda" else kv_room_bytes),
        headroom_bytes=room.total_bytes - limit_bytes,
        disk_bytes=weights_bytes,
        fits=True,
        reason=None,
        advice=(),
    )
    return _judge(made, shape, room)


def _judge(made: Plan, shape: Shape, room: Room) -> Plan:
    """Whether it fits: (1) in the model, (2) in the limit, (3) beside what others hold."""
    wanted = made.context_wanted_tokens
    if wanted > shape.max_context_tokens:  # (1)
        reason = f"the model has {shape.max_context_tokens:,} tokens of context, not {wanted:,}"
        return replace(
            made, fits=False, reason=reason, advice=(f"max_model_len: {shape.max_context_tokens}",)
        )
    if made.kv_room_tokens < wanted:  # (2)
        return replace(made, fits=False, reason=_shortage(made), advice=_remedies(made, shape))
    needed_bytes = made.limit_bytes if made.device == "cuda" else made.needed_bytes
    if needed_bytes > made.available_bytes:  # (3)
        where = "GPU" if made.device == "cuda" else "host"
        reason = f"{gib(needed_bytes)} are needed, and other programs leave "
        reason += f"{gib(made.available_bytes)} of the {where}'s {gib(made.total_bytes)} free"
        if room.holders:
            reason += f"; held by: {', '.join(room.holders)}"
        return replace(made, fits=False, reason=reason, advice=_ways_to_room(made, needed_bytes))
    return replace(made, advice=_warnings(made))


def _shortage(made: Plan) -> str:
    if made.device == "cpu":
        return (
            f"{made.context_wanted_tokens:,} tokens of context take more than the "
            f"{gib(made.kv_room_bytes)} of KV cache, which hold {made.kv_room_tokens:,}"
        )
    fixed = f"weights {gib(made.weights_bytes)} and overhead {gib(made.overhead_bytes)}"
    if made.kv_room_tokens == 0:
        return f"{fixed} leave no room for a KV cache in {gib(made.limit_bytes)}"
    return (
        f"{fixed} leave room for {made.kv_room_tokens:,} tokens of context in "
        f"{gib(made.limit_bytes)}, and {made.context_wanted_tokens:,} are wanted"
    )


def _remedies(made: Plan, shape: Shape) -> tuple[str, ...]:
    """What would make it fit, the cheapest first."""
    if made.device == "cpu":
        return (f"VLLM_CPU_KVCACHE_SPACE: {math.ceil(made.kv_wanted_bytes / GIB)}",)
    remedies = []
    kv_bytes = made.kv_wanted_bytes
    if made.kv_cache_dtype == "auto":
        kv_bytes = kv_bytes * shape.kv_bytes_per_token("fp8") // made.kv_bytes_per_token
        if kv_bytes <= made.kv_room_bytes:
            remedies.append("kv_cache_dtype: fp8, with attention_backend: TRITON_ATTN")
    for size_bytes, also in ((made.kv_wanted_bytes, ""), (kv_bytes, " and kv_cache_dtype: fp8")):
        needed_bytes = made.weights_bytes + made.overhead_bytes + size_bytes
        utilization = math.ceil(needed_bytes / made.total_bytes * 100) / 100
        if made.limit_bytes < needed_bytes and utilization <= _MAX_ADVISED_UTILIZATION:
            remedies.append(f"gpu_memory_utilization: {utilization:.2f}{also}")
            break
    if made.kv_room_tokens:
        remedies.append(f"max_model_len: {made.kv_room_tokens}")
    smaller_bytes = made.limit_bytes - made.overhead_bytes - kv_bytes
    if smaller_bytes > 0:
        also = " and kv_cache_dtype: fp8" if kv_bytes < made.kv_wanted_bytes else ""
        remedies.append(f"a checkpoint of at most {gib(smaller_bytes)}{also}")
    share = made.limit_bytes / made.total_bytes
    card_bytes = (made.weights_bytes + made.overhead_bytes + made.kv_wanted_bytes) / share
    remedies.append(f"a card with {math.ceil(card_bytes / GIB)} GiB")
    return tuple(remedies)


def _ways_to_room(made: Plan, needed_bytes: int) -> tuple[str, ...]:
    """What would help where others hold the memory."""
    ways = []
    if made.device == "cpu":
        fixed_bytes = made.weights_bytes + made.overhead_bytes
        space = (made.available_bytes - fixed_bytes) // GIB
        if space * GIB >= made.kv_wanted_bytes:
            ways.append(f"VLLM_CPU_KVCACHE_SPACE: {space}")
    if needed_bytes <= made.total_bytes:
        ways.append(f"ending programs that hold {gib(needed_bytes - made.available_bytes)}")
    return tuple(ways)


def _warnings(made: Plan) -> tuple[str, ...]:
    """What is worth knowing of a model that fits."""
    if made.device == "cpu":
        return ()
    warnings = []
    spare_bytes = made.kv_room_bytes - made.kv_wanted_bytes
    if spare_bytes < _TIGHT_BYTES:
        warnings.append(f"tight: {gib(spare_bytes)} to spare for the context")
    if made.headroom_bytes < _ADVISED_HEADROOM_BYTES:
        warnings.append(
            f"{gib(made.headroom_bytes)} are left for other programs on the card; 1.5 to 2 GiB "
            "are advised"
        )
    return tuple(warnings)


def gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
