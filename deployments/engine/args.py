"""Builds the command line and the environment of an engine from the settings and the machine's
cores.

`tests/cluster/test_engine_args_parsed.py` reads every result with vLLM's own argument parser.
"""

import json
import os
from pathlib import Path

import psutil

from deployments.settings import GPU_ONLY, EngineSettings, ModelSpec

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

# A schema allows white space between its tokens for ever, and a small model under one can emit
# nothing else until max_tokens. Only xgrammar and guidance can forbid it, so the choice is not
# left to vLLM ("auto").
_STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}


def engine_flags(
    spec: ModelSpec, checkpoint: Path, device: str, *, can_sleep: bool = False
) -> list[str]:
    """vLLM's flags for `spec`, with the weights in `checkpoint`, on `device` (cuda or cpu)."""
    engine = spec.engine
    flags = [
        f"--model={checkpoint}",
        f"--served-model-name={spec.name}",
        f"--max-model-len={engine.max_model_len}",
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
    if can_sleep and device == "cuda":  # the CPU has no memory to move, and knows no such flag
        flags.append("--enable-sleep-mode")
    return flags + (_gpu_flags(spec) if device == "cuda" else _CPU_FLAGS)


def _generation_flags(engine: EngineSettings) -> list[str]:
    flags = [f"--structured-outputs-config={json.dumps(_STRUCTURED_OUTPUTS)}"]
    if engine.tool_call_parser:
        flags += ["--enable-auto-tool-choice", f"--tool-call-parser={engine.tool_call_parser}"]
    return flags


def engine_environment(spec: ModelSpec, device: str, *, can_sleep: bool = False) -> dict[str, str]:
    """What the engine's environment holds besides what it inherits."""
    return (
        EVERY_ENGINE
        | ({} if device == "cuda" else _CPU_ENV | {"OMP_NUM_THREADS": str(_num_threads())})
        | (_SLEEP_ENV if can_sleep else {})
        | spec.env
    )


def _gpu_flags(spec: ModelSpec) -> list[str]:
    values = {name: getattr(spec.engine, name) for name in GPU_ONLY}
    return [f"--{k.replace('_', '-')}={v}" for k, v in values.items() if v is not None]


def _num_threads() -> int:
    """Cores that an engine on the CPU computes on: all but one, left to the processes that feed it.

    vLLM does the same by itself where the worker is a process of its own, and then too takes one of
    the threads that share a core. The threads wait for each other at every step: on two cores, two
    of them beside the rest of the server made fewer tokens a second than one.
    """
    usable = len(os.sched_getaffinity(0))
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable) - 1)
