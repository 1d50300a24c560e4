"""`engine_args` of a model's file: flags of vLLM that have no setting of their own here."""

import json
from collections.abc import Mapping
from typing import Any

# Flags of vLLM that this server sets, or that would break what it promises, and why a model's file
# may not set them. Those that are settings of ours are found by their name.
_OURS = {
    "model": "`checkpoint` names the weights",
    "tokenizer": "the checkpoint's own is used, whose hash is checked",
    "revision": "`revision` beside `checkpoint` names it",
    "served_model_name": "`name` is the model's name; `aliases` gives it others",
    "host": "an engine listens on a private socket only",
    "port": "an engine listens on a private socket only",
    "uds": "an engine listens on a private socket only",
    "api_key": "the gateway checks keys",
    "ssl_keyfile": "an engine listens on a private socket only",
    "ssl_certfile": "an engine listens on a private socket only",
    "config": "its file could set what this server sets",
    "root_path": "the gateway knows an engine's paths",
    "middleware": "it would run code that nothing here checks",
    "trust_remote_code": "code out of a checkpoint is never run",
    "allowed_local_media_path": "requests would read this machine's files",
    "allowed_media_domains": "pictures come in the request, never from an address",
    "kv_cache_memory_bytes": "the memory plan sizes the KV cache",
    "num_gpu_blocks_override": "the memory plan sizes the KV cache",
    "kv_cache_memory": "the memory plan sizes the KV cache",
    "cpu_offload_gb": "the memory plan does not know of it",
    "enable_sleep_mode": "`residency: warm` in the profile sets it",
    "runner": "`tasks` says what the model can do",
    "task": "`tasks` says what the model can do",
    "convert": "`tasks` says what the model can do",
    "enable_auto_tool_choice": "`tool_call_parser` sets it",
    "structured_outputs_config": "the gateway's checks of schemas are made for this server's own",
    "limit_mm_per_prompt": "`max_images` sets it",
    "mm_processor_kwargs": "`max_pixels` sets it",
    "skip_mm_profiling": "the memory plan decides it",
    "disable_log_stats": "the server's metrics need them",
    "enable_log_requests": "prompts do not belong in logs",
    "enable_log_outputs": "answers do not belong in logs",
    "log_error_stack": "prompts do not belong in logs",
    "data_parallel_size": "an engine has one card",
    "tensor_parallel_size": "an engine has one card",
    "pipeline_parallel_size": "an engine has one card",
    "distributed_executor_backend": "an engine has one card",
    "api_server_count": "one server process answers for one engine",
    "headless": "one server process answers for one engine",
}


def refuse_ours(args: Mapping[str, Any], own_settings: set[str]) -> Mapping[str, Any]:
    """`args` with underscores in their names.

    Raises:
        ValueError: one of them is this server's to set; the message says why, or which setting is
            meant.
    """
    found = {name.strip("-").replace("-", "_"): value for name, value in args.items()}
    if len(found) < len(args):
        raise ValueError("a flag is there twice, with hyphens and with underscores")
    for name, value in found.items():
        plain = name.removeprefix("no_")
        if plain in own_settings:
            raise ValueError(f"{name}: set `{plain}` beside `engine_args` instead")
        if plain in _OURS:
            raise ValueError(f"{name} cannot be set here: {_OURS[plain]}")
        if value is None:
            raise ValueError(f"{name} has no value; leave it out for vLLM's own default")
    return found


def as_flags(args: Mapping[str, Any]) -> list[str]:
    """vLLM's flags for `args`: a bool switches, a mapping or list is JSON."""
    return [_flag(name.replace("_", "-"), value) for name, value in args.items()]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str | int | float) else json.dumps(value)}"
