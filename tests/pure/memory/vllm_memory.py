"""vLLM's own rules about a card's memory, as a pure function: what a start with our flags meets.

Source: vllm 0.32.0, v1/worker/utils.py (request_memory), v1/worker/gpu_worker.py (init_device,
determine_available_memory), v1/core/kv_cache_utils.py (the check of the context).
"""

import math
from dataclasses import dataclass

GIB = 2**30
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Engine:
    """What one engine takes of a card, in bytes, apart from its KV cache."""

    weights_bytes: int
    context_bytes: int  # its CUDA context, there before vLLM looks
    activation_bytes: int  # the peak of a step, graphs, and what is outside of torch
    compile_bytes: int = 0  # more than that, in a start that compiles (vllm#54122)
    kv_bytes_per_token: int = 1


class Refused(Exception):
    """vLLM does not start; the text is its own."""


def start(
    engine: Engine,
    *,
    total_bytes: int,
    free_bytes: int,
    utilization: float,
    max_model_len: int,
    kv_cache_memory_bytes: int | None = None,
) -> int:
    """The size of the KV cache of an engine that starts on a card with `free_bytes`.

    (1) The context comes first, and what is asked for must be free beside it. (2) A KV cache of a
    given size is taken as it is; else it is what a profile run leaves of the share. (3) One context
    has to fit into it. (4) All of it has to be there.

    Raises:
        Refused: one of them is not so.
    """
    free_bytes -= engine.context_bytes
    requested_bytes = math.ceil(total_bytes * utilization)
    if free_bytes < requested_bytes:  # (1)
        raise Refused("Free memory on device is less than desired GPU memory utilization")
    peak_bytes = engine.weights_bytes + engine.activation_bytes + engine.compile_bytes
    if kv_cache_memory_bytes is None:  # (2)
        kv_bytes = requested_bytes - peak_bytes
    else:
        kv_bytes = kv_cache_memory_bytes
    num_blocks = kv_bytes // (BLOCK_TOKENS * engine.kv_bytes_per_token)
    if (num_blocks - 1) * BLOCK_TOKENS < max_model_len:  # (3)
        raise Refused("To serve at least one request with the model's max seq len")
    if free_bytes < max(peak_bytes, engine.weights_bytes + engine.activation_bytes + kv_bytes):
        raise Refused("CUDA out of memory")  # (4)
    return kv_bytes
