"""The memory plan: what a model takes, what is left for its KV cache, and what would make it fit.

PURE. The estimates of the overhead are corrected by what engines were measured to take
(`deployments/memory/overhead.py`); everything else is arithmetic on the checkpoint's own numbers.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from deployments.checkpoints.kv_cache import KvCache, Scheduling
from deployments.checkpoints.shape import Shape
from deployments.settings import EngineSettings

GIB = 2**30
MIB = 2**20
# What the driver of an RTX 5080 reports as its whole memory.
RTX_5080_BYTES = 16303 * MIB
# Under Linux CUDA gives out that much less of it: 15.47 of 15.92 GiB in ten public logs of an RTX
# 5080, 31.37 of 31.84 on an RTX 5090 (vllm#14452). Under WSL2 CUDA gives out all of it.
CUDA_RESERVED_BYTES = 462 * MIB
# Under WSL2 an engine that fills 0.88 of the card meets "out of memory" below what the driver calls
# free, and 0.80 cured it (microsoft/WSL#41176).
MAX_SHARE_WSL2 = 0.80

# Beside weights and KV cache: the CUDA context (0.5 GiB), activations of one step, graphs; a vision
# tower's step is larger. An estimate, until an engine of the model has been measured.
_OVERHEAD_BYTES = {"text": 1.2 * GIB, "vision": 2.0 * GIB}
# vLLM compares its share of the card with what is free once its own CUDA context is there.
_CONTEXT_BYTES = 0.5 * GIB
# Python processes with torch and vLLM: 0.6 to 0.8 GiB of their own, measured, where they are forked
# from the standby, which shares its imports with them; more where they are started plainly.
_CPU_OVERHEAD_BYTES = 1.5 * GIB

# Tokens in a block of KV cache, vLLM's default. vLLM never hands out one block of the pool; one
# more covers what it rounds.
_BLOCK_TOKENS = {"cuda": 16, "cpu": 128}
_NUM_SPARE_BLOCKS = {"cuda": 2, "cpu": 1}
_VLLM_UTILIZATION = 0.92  # vLLM's default share of the card

# A KV cache larger than the wanted context needs leaves that much free for other programs to grow.
_SLACK_BYTES = 1.0 * GIB
# Above it the desktop, a browser and a player do not fit beside the engine.
_ADVISED_HEADROOM_BYTES = 1.5 * GIB
_MAX_ADVISED_UTILIZATION = 0.90
_TIGHT_BYTES = 0.1 * GIB

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Overhead:
    """What an engine takes beside weights and KV cache."""

    size_bytes: int
    source: Literal["estimate", "measured"]


@dataclass(frozen=True)
class Room:
    """The memory that an engine is to fit into: the card's, or the host's where there is none."""

    device: Device
    total_bytes: int  # of a card: what CUDA gives out, which may be less than the driver reports
    free_bytes: int | None = None  # now; None where it cannot be read, or on a card on paper
    returned_bytes: int = 0  # by the engine that serves now, when it is unloaded
    holders: tuple[str, ...] = ()  # the programs that hold the rest, the largest first
    max_share: float = 1.0  # of the whole, for one engine; settings may say less

    @property
    def available_bytes(self) -> int:
        """What is free once the engine that serves now is gone."""
        if self.free_bytes is None:
            return self.total_bytes
        return min(self.free_bytes + self.returned_bytes, self.total_bytes)


@dataclass(frozen=True)
class Plan:
    """One model in one room."""

    model: str
    checkpoint: str
    device: Device
    total_bytes: int
    free_bytes: int | None
    available_bytes: int
    limit_bytes: int  # all that its engine may take
    weights_bytes: int
    overhead_bytes: int  # on a card with the engine's CUDA context
    overhead_source: Literal["estimate", "measured"]
    kv_cache_dtype: str
    kv_bytes_per_token: int
    kv_wanted_bytes: int  # for the longest context that is wanted
    kv_room_bytes: int  # in the limit, and in what is free
    kv_room_tokens: int
    kv_cache_bytes: int  # what the engine is given
    context_wanted_tokens: int
    context_floor_tokens: int  # the shortest context that is worth a load
    context_fits_tokens: int  # no more than the model was trained for
    context_tokens: int  # what the engine is started with; 0 where it does not fit
    floor_bytes: int  # the least that an engine can start with: with the shortest context
    needed_bytes: int  # with a KV cache for `context_tokens`, or else for the floor's
    engine_bytes: int  # what the engine takes, with the KV cache that it is given
    headroom_bytes: int  # of the whole memory, left for other programs
    disk_bytes: int
    fits: bool
    reason: str | None  # why it does not fit
    advice: tuple[str, ...]

    @property
    def is_shortened(self) -> bool:
        """Whether it fits with a shorter context than is wanted."""
        return self.fits and self.context_tokens < self.context_wanted_tokens

    @property
    def is_flexible(self) -> bool:
        """Whether the settings allow a shorter context than is wanted."""
        return self.context_floor_tokens < self.context_wanted_tokens

    @property
    def utilization(self) -> float:
        """vLLM's `--gpu-memory-utilization`. With a KV cache of a given size it is only a gate:
        vLLM starts where this share of the card is free beside its own context."""
        share = (self.engine_bytes - _CONTEXT_BYTES) / self.total_bytes
        return max(0.01, math.floor(share * 1000) / 1000)


def overhead_estimate(is_vision: bool, device: Device) -> Overhead:
    """For a model of which no engine has been measured."""
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

    On a card the engine gets the longest context that fits, from `max_model_len` down to
    `min_model_len`, and the largest KV cache that its limit and other programs leave.

    `kv_space_bytes`: the KV cache's fixed size (VLLM_CPU_KVCACHE_SPACE); only on the CPU, where
    the share of the memory sets nothing.
    """
    is_gpu = room.device == "cuda"
    cache = _kv_cache(shape, engine, room.device, engine.kv_cache_dtype if is_gpu else "auto")
    wanted = engine.max_model_len
    floor = min(engine.min_model_len or wanted, wanted)
    fixed_bytes = weights_bytes + overhead.size_bytes
    if is_gpu:
        share = min(engine.gpu_memory_utilization or _VLLM_UTILIZATION, room.max_share)
        limit_bytes = int(room.total_bytes * share)
        kv_room_bytes = min(limit_bytes, room.available_bytes) - fixed_bytes
    else:
        kv_room_bytes = cache.size_bytes(wanted) if kv_space_bytes is None else kv_space_bytes
        limit_bytes = room.available_bytes
    kv_room_tokens = cache.num_tokens(kv_room_bytes)
    context_tokens = min(wanted, kv_room_tokens)
    is_enough = context_tokens >= floor
    least_bytes = cache.size_bytes(context_tokens if is_enough else floor)
    generous_bytes = min(limit_bytes, room.available_bytes - int(_SLACK_BYTES)) - fixed_bytes
    kv_cache_bytes = max(least_bytes, generous_bytes) if is_gpu else kv_room_bytes
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
        kv_cache_dtype=engine.kv_cache_dtype if is_gpu else "auto",
        kv_bytes_per_token=cache.bytes_per_token,
        kv_wanted_bytes=cache.size_bytes(wanted),
        kv_room_bytes=max(kv_room_bytes, 0),
        kv_room_tokens=kv_room_tokens,
        kv_cache_bytes=kv_cache_bytes,
        context_wanted_tokens=wanted,
        context_floor_tokens=floor,
        context_fits_tokens=min(kv_room_tokens, shape.max_context_tokens),
        context_tokens=context_tokens if is_enough else 0,
        floor_bytes=fixed_bytes + (cache.size_bytes(floor) if is_gpu else kv_room_bytes),
        needed_bytes=fixed_bytes + (least_bytes if is_gpu else kv_room_bytes),
        engine_bytes=fixed_bytes + kv_cache_bytes,
        headroom_bytes=room.total_bytes - limit_bytes,
        disk_bytes=weights_bytes,
        fits=True,
        reason=None,
        advice=(),
    )
    return _judge(made, shape, engine, room)


def _kv_cache(shape: Shape, engine: EngineSettings, device: Device, dtype: str) -> KvCache:
    scheduling = Scheduling(
        engine.max_num_seqs, engine.max_num_batched_tokens, engine.enable_prefix_caching
    )
    return shape.kv_cache(dtype, scheduling, _BLOCK_TOKENS[device], _NUM_SPARE_BLOCKS[device])


def _judge(made: Plan, shape: Shape, engine: EngineSettings, room: Room) -> Plan:
    """Whether it fits: (1) in the model, (2) in the limit, (3) beside other programs."""
    wanted = made.context_wanted_tokens
    if wanted > shape.max_context_tokens:  # (1)
        reason = f"the model has {shape.max_context_tokens:,} tokens of context, not {wanted:,}"
        return _refused(made, reason, (f"max_model_len: {shape.max_context_tokens}",))
    is_gpu = made.device == "cuda"
    is_enough = made.kv_room_tokens >= made.context_floor_tokens
    if not is_enough and (not is_gpu or made.needed_bytes > made.limit_bytes):  # (2)
        return _refused(made, _shortage(made), _remedies(made, shape, engine))
    if made.needed_bytes > made.available_bytes:  # (3)
        where = "GPU" if is_gpu else "host"
        reason = f"{gib(made.needed_bytes)} are needed, and other programs leave "
        reason += f"{gib(made.available_bytes)} of the {where}'s {gib(made.total_bytes)} free"
        if room.holders:
            reason += f"; held by: {', '.join(room.holders)}"
        return _refused(made, reason, _ways_to_room(made))
    return replace(made, advice=_warnings(made))


def _refused(made: Plan, reason: str, advice: tuple[str, ...]) -> Plan:
    return replace(made, fits=False, context_tokens=0, reason=reason, advice=advice)


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
        f"{gib(made.limit_bytes)}, and at least {made.context_floor_tokens:,} are wanted"
    )


def _remedies(made: Plan, shape: Shape, engine: EngineSettings) -> tuple[str, ...]:
    """Changes that would make it fit, the cheapest first."""
    if made.device == "cpu":
        return (f"VLLM_CPU_KVCACHE_SPACE: {math.ceil(made.kv_wanted_bytes / GIB)}",)
    remedies = []
    fixed_bytes = made.weights_bytes + made.overhead_bytes
    least_bytes = kv_bytes = made.needed_bytes - fixed_bytes
    if made.kv_cache_dtype == "auto":
        halved = _kv_cache(shape, engine, made.device, "fp8")
        kv_bytes = halved.size_bytes(made.context_floor_tokens)
        if kv_bytes <= made.kv_room_bytes:
            remedies.append("kv_cache_dtype: fp8, with attention_backend: TRITON_ATTN")
    for size_bytes, also in ((least_bytes, ""), (kv_bytes, " and kv_cache_dtype: fp8")):
        needed_bytes = fixed_bytes + size_bytes
        utilization = math.ceil(needed_bytes / made.total_bytes * 100) / 100
        if made.limit_bytes < needed_bytes and utilization <= _MAX_ADVISED_UTILIZATION:
            remedies.append(f"gpu_memory_utilization: {utilization:.2f}{also}")
            break
    if made.kv_room_tokens:
        key = "min_model_len" if made.is_flexible else "max_model_len"
        remedies.append(f"{key}: {made.kv_room_tokens}")
    smaller_bytes = made.limit_bytes - made.overhead_bytes - kv_bytes
    if smaller_bytes > 0:
        also = " and kv_cache_dtype: fp8" if kv_bytes < least_bytes else ""
        remedies.append(f"a checkpoint of at most {gib(smaller_bytes)}{also}")
    share = made.limit_bytes / made.total_bytes
    remedies.append(f"a card with {math.ceil(made.needed_bytes / share / GIB)} GiB")
    return tuple(remedies)


def _ways_to_room(made: Plan) -> tuple[str, ...]:
    """What would help where other programs hold the memory."""
    ways = []
    fixed_bytes = made.weights_bytes + made.overhead_bytes
    if made.device == "cpu":
        space = (made.available_bytes - fixed_bytes) // GIB
        if space * GIB >= made.kv_wanted_bytes:
            ways.append(f"VLLM_CPU_KVCACHE_SPACE: {space}")
    if made.needed_bytes <= made.total_bytes:
        ways.append(f"ending programs that hold {gib(made.needed_bytes - made.available_bytes)}")
    if made.device == "cuda" and made.kv_room_tokens:
        key = "min_model_len" if made.is_flexible else "max_model_len"
        ways.append(f"{key}: {made.kv_room_tokens}")
    return tuple(ways)


def _warnings(made: Plan) -> tuple[str, ...]:
    """Notes on a model that fits."""
    if made.device == "cpu":
        return ()
    warnings = []
    spare_bytes = made.kv_room_bytes - made.kv_wanted_bytes
    if made.is_shortened:
        warnings.append(
            f"a context of {made.context_tokens:,} tokens fits, not {made.context_wanted_tokens:,}"
        )
    elif spare_bytes < _TIGHT_BYTES:
        warnings.append(f"tight: {gib(spare_bytes)} to spare for the context")
    if made.headroom_bytes < _ADVISED_HEADROOM_BYTES:
        warnings.append(
            f"{gib(made.headroom_bytes)} are left for other programs on the card; 1.5 to 2 GiB "
            "are advised"
        )
    return tuple(warnings)


def gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
