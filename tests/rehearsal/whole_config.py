"""What vLLM makes of an engine's command line: the whole configuration, and what is chosen by it.

Run with the Python of the CUDA wheel (see `cuda_wheel.py`). Reads a list of flags a line, as JSON,
and answers each with an object.
"""

import json
import sys
from typing import Any

import cuda_site
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.scalar_type import scalar_types
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.selector import get_attn_backend

_PARSER = make_arg_parser(FlexibleArgumentParser())


def whole_config(flags: list[str]) -> VllmConfig:
    """As the API server makes it, before it starts the engine core."""
    args = _PARSER.parse_args(flags)
    validate_parsed_serve_args(args)
    engine = AsyncEngineArgs.from_cli_args(args)
    return engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def choices(config: VllmConfig) -> dict[str, Any]:
    """What a start on the card depends on."""
    model, cache = config.model_config, config.cache_config
    compilation, scheduler = config.compilation_config, config.scheduler_config
    return {
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "linear_kernel": _linear_kernel(config),
        "attention": _attention(config),
        "vision_attention": _vision_attention(config),
        "kv_cache_dtype": cache.cache_dtype,
        "block_size": cache.block_size,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
        "prefix_caching": cache.enable_prefix_caching,
        "cudagraph_mode": compilation.cudagraph_mode.name,
        "cudagraph_sizes": compilation.cudagraph_capture_sizes,
        "uses_v2_runner": config.use_v2_model_runner,
        "worker": config.parallel_config.worker_cls,
        "executor": config.parallel_config.distributed_executor_backend,
        "runner": model.runner_type,
        "max_model_len": model.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "async_scheduling": scheduler.async_scheduling,
        "can_sleep": model.enable_sleep_mode,
        "load_strategy": config.load_config.safetensors_load_strategy,
        "touched": cuda_site.TOUCHED,
    }


def _attention(config: VllmConfig) -> str:
    with set_current_vllm_config(config):
        backend = get_attn_backend(
            head_size=config.model_config.get_head_size(),
            dtype=config.model_config.dtype,
            kv_cache_dtype=config.cache_config.cache_dtype,
        )
    return str(backend.get_name())


def _vision_attention(config: VllmConfig) -> str | None:
    multimodal = config.model_config.multimodal_config
    return multimodal and multimodal.mm_encoder_attn_backend.name


def _linear_kernel(config: VllmConfig) -> str:
    """For the largest layer: the feed-forward layer's way up, of both its halves."""
    text = config.model_config.hf_text_config
    shape = (text.hidden_size, 2 * text.intermediate_size)
    layer = MPLinearLayerConfig(
        full_weight_shape=shape,
        partition_weight_shape=shape,
        weight_type=scalar_types.uint4,
        act_type=config.model_config.dtype,
        group_size=128,
        zero_points=True,
    )
    with set_current_vllm_config(config):
        return str(choose_mp_linear_kernel(layer).__name__)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # vLLM logs to its standard output
    for line in sys.stdin:
        print(json.dumps(choices(whole_config(json.loads(line))), default=str), file=answers)
