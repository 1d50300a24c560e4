"""Reads a checkpoint's layers and sizes from its `config.json`. Pure: nothing is downloaded.

The sizes are those of the tensors as the checkpoint stores them. vLLM loads the same number of
bytes: its repacking for Marlin kernels moves bits and keeps their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Architectures whose tensors are counted below; for others the size comes from the weights' files.
_COUNTED = {"llama", "qwen2", "qwen2_5_vl"}


class UnknownShapeError(Exception):
    """The config lacks a number that the memory plan needs."""


@dataclass(frozen=True)
class Quantization:
    """How the language model's linear layers are quantized; embeddings and vision are not."""

    method: str
    bits: int
    group_size: int | None  # None: one scale for each output channel

    def linear_bytes(self, num_in: int, num_out: int) -> int:
        weights = num_in * num_out * self.bits // 8
        if self.group_size is None:
            return weights + 2 * num_out
        num_scales = num_in // self.group_size * num_out
        zeros = num_scales * self.bits // 8 if self.method in ("awq", "gptq") else 0
        return weights + 2 * num_scales + zeros  # vLLM drops GPTQ's g_idx, unless it reorders


@dataclass(frozen=True)
class VisionShape:
    """The vision tower of Qwen2.5-VL."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_patch_values: int  # in one patch: channels x frames x pixels
    num_merged: int  # patches merged into one token
    out_hidden_size: int

    @property
    def num_parameters(self) -> int:
        size, inner = self.hidden_size, self.intermediate_size
        attention = size * 3 * size + 3 * size + size * size + size
        mlp = 3 * size * inner + 2 * inner + size
        block = attention + mlp + 2 * size
        merged = self.num_merged * size
        merger = size + merged * merged + merged + (merged + 1) * self.out_hidden_size
        return self.num_patch_values * size + self.num_layers * block + merger


@dataclass(frozen=True)
class Shape:
    """The numbers of a transformer that its memory depends on."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    dtype_bytes: int
    is_tied: bool  # embedding and output layer share one matrix
    quantization: Quantization | None
    vision: VisionShape | None

    def kv_bytes_per_token(self, kv_cache_dtype: str) -> int:
        """Bytes of one token's keys and values in all layers; `auto`: in the checkpoint's dtype."""
        value_bytes = 1 if kv_cache_dtype.startswith("fp8") else self.dtype_bytes
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * value_bytes

    def weights_bytes(self) -> int:
        """Bytes of all tensors. Raises UnknownShapeError for an architecture not counted here."""
        if self.model_type not in _COUNTED:
            raise UnknownShapeError(f"the tensors of {self.model_type!r} cannot be counted")
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        size, inner = self.hidden_size, self.intermediate_size
        linear = (
            self._linear_bytes(size, q_size)
            + 2 * self._linear_bytes(size, kv_size)
            + self._linear_bytes(q_size, size)
            + 2 * self._linear_bytes(size, inner)
            + self._linear_bytes(inner, size)
        )
        num_plain = 2 * size + (q_size + 2 * kv_size if "qwen2" in self.model_type else 0)
        num_embedding = self.vocab_size * size * (1 if self.is_tied else 2)
        plain = self.num_layers * num_plain + size + num_embedding
        if self.vision:
            plain += self.vision.num_parameters
        return self.num_layers * linear + plain * self.dtype_bytes

    def _linear_bytes(self, num_in: int, num_out: int) -> int:
        if self.quantization:
            return self.quantization.linear_bytes(num_in, num_out)
        return num_in * num_out * self.dtype_bytes


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read a `config.json`, in the layout of transformers 4 or 5.

    Raises:
        UnknownShapeError: a number is missing or is not a number.
    """
    text = config.get("text_config") or config
    try:
        hidden_size, num_heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        dtype = text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return Shape(
            model_type=str(config["model_type"]),
            num_layers=int(text["num_hidden_layers"]),
            hidden_size=hidden_size,
            intermediate_size=int(text["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=int(text.get("num_key_value_heads") or num_heads),
            head_dim=int(text.get("head_dim") or hidden_size // num_heads),
            vocab_size=int(text["vocab_size"]),
            max_context_tokens=int(text["max_position_embeddings"]),
            dtype_bytes=_DTYPE_BYTES[str(dtype).removeprefix("torch.")],
            is_tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
            quantization=_quantization_of(config.get("quantization_config")),
            vision=_vision_of(config.get("vision_config")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as exc:
        raise UnknownShapeError(f"config.json lacks a number for the memory plan: {exc!r}") from exc


def _quantization_of(raw: Mapping[str, Any] | None) -> Quantization | None:
    if not raw:
        return None
    method = str(raw["quant_method"])
    if method == "compressed-tensors":
        weights = next(iter(raw["config_groups"].values()))["weights"]
        return Quantization(method, int(weights["num_bits"]), weights.get("group_size"))
    if method == "fp8":
        return Quantization(method, 8, None)
    return Quantization(method, int(raw["bits"]), int(raw["group_size"]))


def _vision_of(raw: Mapping[str, Any] | None) -> VisionShape | None:
    if not raw:
        return None
    channels = raw.get("in_channels") or raw.get("in_chans") or 3
    return VisionShape(
        num_layers=int(raw["depth"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_patch_values=int(channels) * int(raw["temporal_patch_size"]) * raw["patch_size"] ** 2,
        num_merged=int(raw["spatial_merge_size"]) ** 2,
        out_hidden_size=int(raw["out_hidden_size"]),
    )
