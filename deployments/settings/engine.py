"""The settings that one engine is started with."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from deployments.settings.base import Frozen
from deployments.settings.engine_args import refuse_ours

# Settings of an engine that mean something on a GPU only, or for a model that takes images only.
GPU_ONLY = (
    "min_model_len",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "attention_backend",
    "cudagraph_mode",
    "max_cudagraph_capture_size",
    "load_format",
    "safetensors_load_strategy",
)
VISION_ONLY = ("mm_encoder_attn_backend", "max_images", "max_pixels")


def _refuse_thousands(value: Any) -> Any:
    if isinstance(value, str) and value.strip()[-1:] in ("k", "K"):
        raise ValueError(
            f"a number of tokens is wanted, but it is {value!r}; 32K is taken for 32768 here and "
            "for 32000 there, so write the number out"
        )
    return value


Tokens = Annotated[int, Field(gt=0), BeforeValidator(_refuse_thousands)]


class EngineSettings(Frozen):
    """What one engine is started with. `None` leaves vLLM's own default in force."""

    max_model_len: Tokens
    min_model_len: Tokens | None = None  # GPU: the shortest context that is worth a load
    max_num_seqs: Annotated[int, Field(gt=0)]
    max_num_batched_tokens: Tokens
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=0.95)] | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    dtype: Literal["auto", "float16", "bfloat16"] = "auto"
    attention_backend: Literal["TRITON_ATTN", "FLASH_ATTN", "FLASHINFER"] | None = None
    mm_encoder_attn_backend: Literal["TORCH_SDPA"] | None = None
    cudagraph_mode: Literal["PIECEWISE", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"] | None = None
    max_cudagraph_capture_size: int | None = None
    load_format: Literal["fastsafetensors", "instanttensor"] | None = None
    safetensors_load_strategy: Literal["lazy", "eager", "prefetch"] | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    max_images: Annotated[int, Field(ge=0)] = 0
    max_pixels: int | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    engine_args: dict[str, Any] = Field(default_factory=dict)  # other flags of vLLM

    @field_validator("engine_args")
    @classmethod
    def _check_engine_args(cls, value: dict[str, Any]) -> dict[str, Any]:
        return dict(refuse_ours(value, set(cls.model_fields)))

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.kv_cache_dtype == "fp8" and self.attention_backend == "FLASH_ATTN":
            raise ValueError(
                "attention_backend FLASH_ATTN takes no fp8 KV cache on an RTX 50 card: set "
                "attention_backend to TRITON_ATTN or FLASHINFER, or kv_cache_dtype to auto"
            )
        if self.min_model_len and self.min_model_len > self.max_model_len:
            raise ValueError(
                f"min_model_len ({self.min_model_len}) should be at most max_model_len "
                f"({self.max_model_len})"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) should be at least "
                f"max_num_seqs ({self.max_num_seqs}): a step makes one token for each sequence"
            )
        return self
