"""Builds the command line and the environment of an engine from the settings and the machine's
cores.

`tests/cluster/test_engine_args_parsed.py` reads every result with vLLM's own argument parser.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.host.platform import is_wsl
from deployments.settings import EngineSettings, ModelSpec
from deployments.settings.engine_args import as_flags

# Environment of every engine, and of the standby it is forked from, as vLLM reads some of it as it
# is imported: no network, no usage reports, and no fewer stop strings than the gateway takes.
EVERY_ENGINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MAX_STOP_STRINGS": "16",
}

# On the CPU the worker can live in the engine core's process: one import of vLLM less, and a start
# of 23 s instead of 34 s (measured on two cores). Both settings are needed; neither alone acts.
_CPU_ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# vLLM's routes for sleeping come with others that must not be reachable: the socket is private, and
# the gateway forwards only the paths it knows.
_SLEEP_ENV = {"VLLM_SERVER_DEV_MODE": "1"}

_CPU_FLAGS = ["--distributed-executor-backend", "uni"]

# The card's order in CUDA is by speed unless told otherwise; NVML, and so Ray, orders by PCI bus.
_GPU_ENV = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# vLLM does not use pinned memory under WSL2 by default: slow steps, and warm switches 5 times
# slower. A model's own `env` would come too late: vLLM reads it as it is imported.
_WSL_ENV = {"VLLM_WSL2_ENABLE_PIN_MEMORY": "1"}
# PyTorch rounds pinned blocks above 16 MiB up to powers of two otherwise (CachingHostAllocator.h),
# which would make 37 GiB of the 21 that three models keep in host memory.
_PINNED_ENV = {"PYTORCH_ALLOC_CONF": "pinned_max_round_threshold_mb:16"}

# A schema allows white space between its tokens for ever, and a small model under one can emit
# nothing else until max_tokens. Only xgrammar and guidance can forbid it, so the choice is not
# left to vLLM ("auto").
_STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True)
class MemoryShare:
    """The part of the card that an engine is given by the memory plan."""

    utilization: float  # of what CUDA gives out, 0 to 1: vLLM starts where that share is free
    kv_cache_bytes: int
    context_tokens: int


def engine_flags(
    spec: ModelSpec,
    checkpoint: Path,
    device: str,
    *,
    can_sleep: bool = False,
    memory: MemoryShare | None = None,
) -> list[str]:
    """vLLM's flags for `spec`, with the weights in `checkpoint`, on `device` (cuda or cpu).

    `memory`: from the plan; without one vLLM sizes the KV cache by the settings' share of the card.
    """
    engine = spec.engine
    flags = [
        f"--model={checkpoint}",
        f"--served-model-name={spec.name}",
        f"--max-model-len={memory.context_tokens if memory else engine.max_model_len}",
        f"--max-num-seqs={engine.max_num_seqs}",
        f"--max-num-batched-tokens={engine.max_num_batched_tokens}",
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
        "--generation-config=vllm",  # a checkpoint's own sampling defaults would be a surprise
        "--disable-uvicorn-access-log",  # the gateway logs requests
    ]
    if engine.enforce_eager:
        flags.append("--enforce-eager")
    flags += ["--runner=pooling"] if spec.task == "embed" else _generation_flags(engine)
    if engine.mm_encoder_attn_backend:
        flags.append(f"--mm-encoder-attn-backend={engine.mm_encoder_attn_backend}")
    if spec.vision:
        limit = {"image": engine.max_images, "video": 0}
        flags.append(f"--limit-mm-per-prompt={json.dumps(limit)}")
        if engine.max_pixels:
            flags.append(f"--mm-processor-kwargs={json.dumps({'max_pixels': engine.max_pixels})}")
    if engine.dtype != "auto":
        flags.append(f"--dtype={engine.dtype}")
    flags += as_flags(engine.engine_args)
    if device != "cuda":
        return flags + _CPU_FLAGS
    if can_sleep:  # the CPU has no memory to move, and knows no such flag
        flags += ["--enable-sleep-mode", "--sleep-mode-offload-cudagraph"]
    return flags + _gpu_flags(spec, memory)


def _generation_flags(engine: EngineSettings) -> list[str]:
    flags = [f"--structured-outputs-config={json.dumps(_STRUCTURED_OUTPUTS)}"]
    if engine.tool_call_parser:
        flags += ["--enable-auto-tool-choice", f"--tool-call-parser={engine.tool_call_parser}"]
    if engine.reasoning_parser:
        flags.append(f"--reasoning-parser={engine.reasoning_parser}")
    return flags


def engine_environment(spec: ModelSpec, device: str, *, can_sleep: bool = False) -> dict[str, str]:
    """What the engine's environment holds besides what it inherits."""
    return (
        EVERY_ENGINE
        | (gpu_environment() if device == "cuda" else _cpu_environment())
        | (_SLEEP_ENV if can_sleep else {})
        | (_PINNED_ENV if can_sleep and device == "cuda" else {})
        | spec.env
    )


def gpu_environment() -> dict[str, str]:
    """The environment of each engine on a GPU, and of the standby that forks them."""
    return _GPU_ENV | (_WSL_ENV if is_wsl() else {})


def _cpu_environment() -> dict[str, str]:
    return _CPU_ENV | {"OMP_NUM_THREADS": str(_num_threads())}


def _gpu_flags(spec: ModelSpec, memory: MemoryShare | None) -> list[str]:
    engine = spec.engine
    values = {
        "gpu-memory-utilization": memory.utilization if memory else engine.gpu_memory_utilization,
        "kv-cache-memory-bytes": memory.kv_cache_bytes if memory else None,
        "kv-cache-dtype": engine.kv_cache_dtype,
        "attention-backend": engine.attention_backend,
        "max-cudagraph-capture-size": engine.max_cudagraph_capture_size,
        "load-format": engine.load_format,
        "safetensors-load-strategy": engine.safetensors_load_strategy,
    }
    flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
    if engine.cudagraph_mode and spec.task == "generate":  # a pooling model decodes nothing
        flags.append(
            f"--compilation-config={json.dumps({'cudagraph_mode': engine.cudagraph_mode})}"
        )
    if spec.vision and memory:  # the plan keeps room for a step of the vision tower
        flags.append("--skip-mm-profiling")
    # It runs where nvcc is found, takes seconds, and breaks on sm_120 with nvcc below 12.9
    # (vllm#50705); nothing here uses the kernels that it tunes.
    return [*flags, "--no-enable-flashinfer-autotune"]


def _num_threads() -> int:
    """Cores that an engine on the CPU computes on: all but one, left to the processes that feed it.

    vLLM does the same by itself where the worker is a process of its own, and then too takes one of
    the threads that share a core. The threads wait for each other at every step: on two cores, two
    of them beside the rest of the server made fewer tokens a second than one.
    """
    usable = len(os.sched_getaffinity(0))
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable) - 1)
