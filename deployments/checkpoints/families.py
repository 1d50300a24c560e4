"""What the architectures differ in, beyond the numbers in their `config.json`. PURE.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.19.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """The tensors of a family's layers, and the numbers that its configs may leave out."""

    has_qkv_bias: bool = False
    has_all_biases: bool = False  # attention, router and experts; and a sink for each head
    has_qk_norms: bool = False  # one of `head_dim` each
    num_norms: int = 2  # of `hidden_size`, in a layer
    has_query_gate: bool = False  # the query's matrix makes a gate too
    has_shared_gate: bool = False  # the shared expert has one
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA3 = Family(
    num_norms=4,
    has_qk_norms=True,
    defaults=_GEMMA
    | {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6,
    },
)
_HYBRID = Family(
    has_qk_norms=True,
    has_query_gate=True,
    has_shared_gate=True,
    defaults={
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
)
_DEEPSEEK = Family()

# Families whose tensors can be counted; of others the files have to tell the weights.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "phi3": Family(),
    "mixtral": Family(),
    "qwen2": Family(has_qkv_bias=True),
    "qwen2_5_vl": Family(has_qkv_bias=True),
    "qwen3": Family(has_qk_norms=True),
    "qwen3_moe": Family(has_qk_norms=True),
    "gemma": Family(defaults=_GEMMA),
    "gemma2": Family(num_norms=4, defaults=_GEMMA | {"sliding_window_pattern": 2}),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "gpt_oss": Family(has_all_biases=True, defaults={"head_dim": 64, "sliding_window_pattern": 2}),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "qwen3_next": _HYBRID,
    "qwen3_5": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
}
# Of families that are not counted: only what the layers keep of a sequence.
NOT_COUNTED_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"sliding_window_pattern": 4},
    "gemma4": {"head_dim": 256, "sliding_window_pattern": 6},
    "gemma4_text": {"head_dim": 256, "sliding_window_pattern": 6},
    "gemma3n": {"head_dim": 256, "sliding_window_pattern": 5},
}


def defaults_of(model_type: str) -> Mapping[str, Any]:
    """The numbers that the configs of a family may leave out."""
    family = FAMILIES.get(model_type)
    return family.defaults if family else NOT_COUNTED_DEFAULTS.get(model_type, {})
