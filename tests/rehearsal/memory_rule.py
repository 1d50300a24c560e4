"""vLLM's own two checks of a card's memory, called with made-up sizes.

Run with the Python of the CUDA wheel (see `cuda_wheel.py`). Reads JSON with an engine's flags, the
shape of its KV cache and the sizes, and prints each check's error, or null.
"""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from vllm.v1.core.kv_cache_utils import check_enough_kv_cache_memory
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.utils import request_memory

from tests.rehearsal.whole_config import whole_config


def error_of(check: Callable[..., object], *args: object) -> str | None:
    try:
        check(*args)
    except ValueError as exc:
        return str(exc)
    return None


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    given = json.load(sys.stdin)
    config = whole_config(given["flags"])
    config.cache_config.kv_cache_layout = "LBNHC"  # as the engine core does; it moves no size
    layer = FullAttentionSpec(
        block_size=config.cache_config.block_size,
        num_kv_heads=given["num_kv_heads"],
        head_size=given["head_size"],
        dtype=torch.uint8,  # fp8
    )
    layers = {f"layers.{number}": layer for number in range(given["num_layers"])}
    for total, free, utilization in given["gates"]:
        snapshot = SimpleNamespace(total_memory=total, free_memory=free, device_="cuda:0")
        settings = SimpleNamespace(gpu_memory_utilization=utilization)
        print(json.dumps({"error": error_of(request_memory, snapshot, settings)}), file=answers)
    for available in given["kv_caches"]:
        failed = error_of(check_enough_kv_cache_memory, config, layers, available)
        print(json.dumps({"error": failed}), file=answers)
