"""vLLM's own rule for a card's memory: whether an engine starts, and what its KV cache gets.

A pure model of vllm 0.32.0, v1/worker/utils.py (request_memory), utils/mem_utils.py
(memory_profiling), v1/worker/gpu_worker.py (determine_available_memory, compile_or_warm_up_model),
v1/worker/startup_plan.py and v1/core/kv_cache_utils.py (check_enough_kv_cache_memory);
`tests/rehearsal/test_cuda_wheel.py` holds it against that code. The memory plan has to promise no
more than this gives.
"""

import math
from dataclasses import dataclass, replace

GIB = 2**30
MIB = 2**20
BLOCK_TOKENS = 16
_SAVED_LESS_BYTES = 150 * MIB  # of what a start measured, in its record for the next ones


class StartRefused(Exception):
    """The engine ends with this message, much as vLLM words it."""


@dataclass(frozen=True)
class Card:
    """As CUDA tells its memory (cudaMemGetInfo), before the engine has touched it."""

    total_bytes: int
    free_bytes: int

    def beside(self, num_bytes: float) -> "Card":
        """The card, with other programs that hold as much."""
        return replace(self, free_bytes=self.free_bytes - int(num_bytes))


def idle(total_bytes: int) -> Card:
    return Card(total_bytes, total_bytes)


# One RTX 5080, 16,303 MiB to NVML everywhere. On Linux the driver keeps 461 MiB of it from CUDA
# ("total capacity of 15.47 GiB" in public logs), under WSL2 CUDA has it all.
ON_LINUX = idle((16_303 - 461) * MIB)
ON_WSL2 = idle(16_303 * MIB)


@dataclass(frozen=True)
class Engine:
    """What an engine takes, all in bytes."""

    weights_bytes: int
    block_bytes: int  # of KV cache: BLOCK_TOKENS in all layers
    max_model_len: int
    persistent_bytes: int = 0  # beside the weights, held for good: workspaces, cuBLAS, NCCL
    activations_bytes: int = 0  # the peak of one step
    graphs_bytes: int = 0
    graphs_estimate_bytes: int = 0  # before they are captured
    context_bytes: int = int(0.45 * GIB)  # CUDA's own, made before vLLM looks for the first time
    # Left on the card where torch.compile has run within the measured step, as on a cold compile
    # cache: +0.64 GiB beside PyTorch on an RTX 50 (1Cat-vLLM#518; vllm#54122, #54383).
    compiling_bytes: int = int(0.64 * GIB)

    @property
    def wanted_bytes(self) -> int:
        """KV cache for one request of the whole context."""
        return math.ceil(self.max_model_len / BLOCK_TOKENS) * self.block_bytes


@dataclass(frozen=True)
class Started:
    """What an engine that has started got."""

    kv_bytes: int
    kv_tokens: int  # that requests can use: one block is never handed out
    held_bytes: int  # of the card, with the context
    saved_kv_bytes: int | None  # by VLLM_ENABLE_STARTUP_PLAN; None where nothing was measured


def start(
    engine: Engine,
    card: Card,
    utilization: float,
    *,
    kv_cache_memory_bytes: int | None = None,
    is_compiled: bool = True,
) -> Started:
    """A start with these flags; `is_compiled`: an earlier one has filled torch.compile's cache.

    (1) A share of the card's whole memory must be free, however little of it will be used. (2) The
    KV cache gets what the share leaves, or exactly what is asked for. (3) It has to hold one
    request. (4) All of it has to be there.

    Raises:
        StartRefused: it is not so.
    """
    free_bytes = card.free_bytes - engine.context_bytes
    requested_bytes = math.ceil(card.total_bytes * utilization)
    if free_bytes < requested_bytes:  # (1)
        raise StartRefused(
            f"Free memory on device ({_gib(free_bytes)}/{_gib(card.total_bytes)} GiB) on startup "
            f"is less than desired GPU memory utilization ({utilization}, "
            f"{_gib(requested_bytes)} GiB)"
        )
    consumed_bytes = engine.weights_bytes + engine.persistent_bytes
    consumed_bytes += 0 if is_compiled else engine.compiling_bytes
    saved_bytes = None
    if kv_cache_memory_bytes is None:  # (2)
        not_kv_bytes = consumed_bytes + engine.activations_bytes + engine.graphs_estimate_bytes
        kv_bytes = requested_bytes - not_kv_bytes
        # The estimate of the graphs is in the peak already, and the graphs are taken off once more.
        saved_bytes = kv_bytes - engine.graphs_bytes - _SAVED_LESS_BYTES
    else:
        kv_bytes = kv_cache_memory_bytes
    usable_bytes = kv_bytes - engine.block_bytes
    if engine.wanted_bytes > usable_bytes:  # (3)
        raise StartRefused(
            f"To serve at least one request with the model's max seq len ({engine.max_model_len}), "
            f"({_gib(engine.wanted_bytes)} GiB KV cache is needed, which is larger than the "
            f"available KV cache memory ({_gib(usable_bytes)} GiB)"
        )
    held_bytes = consumed_bytes + engine.graphs_bytes + kv_bytes
    if held_bytes + engine.activations_bytes > free_bytes:  # (4)
        raise StartRefused(f"CUDA out of memory: {_gib(held_bytes)} of {_gib(free_bytes)} GiB")
    num_blocks = kv_bytes // engine.block_bytes - 1
    return Started(
        kv_bytes=kv_bytes,
        kv_tokens=num_blocks * BLOCK_TOKENS,
        held_bytes=held_bytes + engine.context_bytes,
        saved_kv_bytes=saved_bytes,
    )


def _gib(num_bytes: float) -> str:
    return f"{round(num_bytes / GIB, 2)}"
