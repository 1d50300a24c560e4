"""Every engine's command line means to vLLM what the settings mean.

Read by vLLM's own parser, in one process for all models and profiles: importing it takes seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deployments.engine.site
from deployments.engine.args import MemoryShare, engine_environment, engine_flags
from deployments.settings import AppArgs, ModelSpec, load_settings

SITE = Path(deployments.engine.site.__file__).parent
CHECKPOINT = Path("/weights/of a model")
SHARE = MemoryShare(utilization=0.84, kv_cache_bytes=3224371200, context_tokens=16384)
# Arguments that only an engine on a GPU gets.
GPU_ARGS = {
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "kv_cache_dtype",
    "attention_backend",
    "compilation_config",
    "max_cudagraph_capture_size",
    "load_format",
    "safetensors_load_strategy",
    "skip_mm_profiling",
    "enable_flashinfer_autotune",
}

PROFILES = {
    name: load_settings(AppArgs.model_validate({"profile": name}), has_gpu=False)
    for name in ("rtx5080", "cpu-demo")
}
ALL = [(profile, model) for profile, s in PROFILES.items() for model in s.targets]

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
def parse(flags):
    return {k: v for k, v in vars(parser.parse_args(flags)).items()}
lines = json.load(sys.stdin)
print(json.dumps([parse(flags) for flags in [[], *lines]], default=str))
"""


def spec_of(profile: str, model: str) -> ModelSpec:
    return PROFILES[profile].targets[model]


@pytest.fixture(scope="module")
def parsed() -> dict[tuple[str, str], dict[str, Any]]:
    """By profile and model; ("", "") holds vLLM's defaults."""
    lines = [
        engine_flags(
            spec_of(profile, model),
            CHECKPOINT,
            PROFILES[profile].device,
            memory=SHARE if profile == "rtx5080" else None,
        )
        for profile, model in ALL
    ]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(lines),
        env=os.environ | {"PYTHONPATH": str(SITE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip([("", ""), *ALL], json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_vllm_reads_what_the_settings_say(parsed, profile, model):
    args, spec = parsed[profile, model], spec_of(profile, model)
    engine = spec.engine
    assert args["model"] == str(CHECKPOINT)
    assert args["served_model_name"] == [spec.name]
    assert args["runner"] == ("pooling" if spec.task == "embed" else "auto")
    context = SHARE.context_tokens if profile == "rtx5080" else engine.max_model_len
    assert args["max_model_len"] == context
    assert args["max_num_seqs"] == engine.max_num_seqs
    assert args["max_num_batched_tokens"] == engine.max_num_batched_tokens
    assert args["enforce_eager"] is engine.enforce_eager
    assert args["enable_prefix_caching"] is engine.enable_prefix_caching
    assert args["generation_config"] == "vllm"
    tools = engine.tool_call_parser if spec.task == "generate" else None
    assert args["enable_auto_tool_choice"] is (tools is not None)
    assert args["tool_call_parser"] == tools


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_images_are_limited_where_there_are_any(parsed, profile, model):
    args, default, spec = parsed[profile, model], parsed["", ""], spec_of(profile, model)
    limits = {"image": spec.engine.max_images, "video": 0} if spec.vision else None
    assert args["limit_mm_per_prompt"] == (limits or default["limit_mm_per_prompt"])
    pixels = {"max_pixels": spec.engine.max_pixels} if spec.engine.max_pixels else None
    assert args["mm_processor_kwargs"] == (pixels or default["mm_processor_kwargs"])
    if spec.vision:
        assert spec.engine.max_images > 0
        assert "TORCH_SDPA" in str(args["mm_encoder_attn_backend"])


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_json_under_a_schema_has_no_white_space(parsed, profile, model):
    """vLLM's own checks have passed: it refuses this together with most backends."""
    spec, device = spec_of(profile, model), PROFILES[profile].device
    if spec.task == "embed":
        flags = engine_flags(spec, CHECKPOINT, device)
        assert not [flag for flag in flags if flag.startswith("--structured-outputs")]
        return
    told = parsed[profile, model]["structured_outputs_config"]
    assert "backend='xgrammar'" in told
    assert "disable_any_whitespace=True" in told


@pytest.mark.parametrize("model", PROFILES["rtx5080"].targets)
def test_gpu_settings_reach_the_gpu(parsed, model):
    spec = spec_of("rtx5080", model)
    args, engine = parsed["rtx5080", model], spec.engine
    assert args["gpu_memory_utilization"] == SHARE.utilization
    assert args["kv_cache_memory_bytes"] == SHARE.kv_cache_bytes
    assert args["skip_mm_profiling"] is spec.vision
    assert args["enable_flashinfer_autotune"] is False
    assert args["dtype"] == engine.dtype
    mode = engine.cudagraph_mode if spec.task == "generate" else None
    assert mode is None or mode in str(args["compilation_config"])
    assert args["kv_cache_dtype"] == engine.kv_cache_dtype
    assert args["max_cudagraph_capture_size"] == engine.max_cudagraph_capture_size
    assert args["safetensors_load_strategy"] == engine.safetensors_load_strategy
    assert (engine.attention_backend or "None") in str(args["attention_backend"])
    assert args["distributed_executor_backend"] == parsed["", ""]["distributed_executor_backend"]


@pytest.mark.parametrize("model", PROFILES["cpu-demo"].models)
def test_no_gpu_setting_reaches_the_cpu(parsed, model):
    args, default = parsed["cpu-demo", model], parsed["", ""]
    assert {key: args[key] for key in GPU_ARGS} == {key: default[key] for key in GPU_ARGS}
    assert args["distributed_executor_backend"] == "uni"


def test_engine_that_may_sleep_has_the_routes_and_on_a_gpu_the_allocator() -> None:
    spec = spec_of("rtx5080", "qwen-14b")
    flags = engine_flags(spec, CHECKPOINT, "cuda", can_sleep=True)
    assert {"--enable-sleep-mode", "--sleep-mode-offload-cudagraph"} <= set(flags)
    assert "--enable-sleep-mode" not in engine_flags(spec, CHECKPOINT, "cpu", can_sleep=True)
    for device in ("cuda", "cpu"):
        environment = engine_environment(spec, device, can_sleep=True)
        assert environment["VLLM_SERVER_DEV_MODE"] == "1"
        assert "VLLM_SERVER_DEV_MODE" not in engine_environment(spec, device)


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_everything_else_is_vllms_default(parsed, profile, model):
    """A flag that means more than it says would show here."""
    ours = {
        *GPU_ARGS,
        "model",
        "dtype",
        "served_model_name",
        "runner",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
        "enable_prefix_caching",
        "generation_config",
        "enable_auto_tool_choice",
        "tool_call_parser",
        "limit_mm_per_prompt",
        "mm_processor_kwargs",
        "mm_encoder_attn_backend",
        "distributed_executor_backend",
        "disable_uvicorn_access_log",
        "structured_outputs_config",
    }
    args, default = parsed[profile, model], parsed["", ""]
    assert {key for key in args if args[key] != default[key]} <= ours


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_no_engine_uses_the_network(profile, model):
    environment = engine_environment(spec_of(profile, model), PROFILES[profile].device)
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert ("VLLM_CPU_KVCACHE_SPACE" in environment) == (profile == "cpu-demo")
    assert ("VLLM_USE_FLASHINFER_SAMPLER" in environment) == (profile == "rtx5080")


@pytest.mark.parametrize(("profile", "model"), ALL)
def test_no_engine_logs_what_it_is_asked(parsed, profile, model):
    """vLLM's default today; a version that turns it on shows here."""
    args = parsed[profile, model]
    assert (args["enable_log_requests"], args["enable_log_outputs"]) == (False, False)
    assert args["log_error_stack"] is False
