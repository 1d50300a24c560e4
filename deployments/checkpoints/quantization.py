"""How a checkpoint stores its linear layers, as `quantization_config` in its `config.json` says.

PURE.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FP4_GROUP = {"nvfp4": 16, "mxfp4": 32}  # weights that share a scale of one byte


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of the language model are stored; embeddings and vision are not."""

    method: str
    bits: int
    group_size: int | None  # None: one scale an output channel
    scale_bytes: int = 2
    has_zeros: bool = False  # each group has a zero point too, of `bits`
    block_size: int | None = None  # scales for squares of so many weights a side
    only_experts: bool = False  # attention stays as it was

    def linear_bytes(self, num_in: int, num_out: int) -> int:
        weights = num_in * num_out * self.bits // 8
        if self.block_size:
            sides = (math.ceil(size / self.block_size) for size in (num_in, num_out))
            return weights + self.scale_bytes * math.prod(sides)
        if self.group_size is None:
            return weights + self.scale_bytes * num_out
        num_scales = math.ceil(num_in / self.group_size) * num_out
        zeros = num_scales * self.bits // 8 if self.has_zeros else 0
        return weights + self.scale_bytes * num_scales + zeros  # vLLM drops GPTQ's g_idx mostly


def quantization_of(raw: Mapping[str, Any]) -> Quantization:
    """Read a `quantization_config`.

    Raises:
        KeyError, TypeError, ValueError: it is of a kind that is not known here.
    """
    method = str(raw["quant_method"])
    name = f"{method} {raw.get('quant_algo', '')} {raw.get('format', '')}".lower()
    if method == "mxfp4":  # of gpt-oss, whose attention is not quantized
        return Quantization(method, 4, 32, scale_bytes=1, only_experts=True)
    for kind, group_size in _FP4_GROUP.items():
        if kind in name:
            return Quantization(method, 4, group_size, scale_bytes=1)
    if method == "compressed-tensors":
        return _compressed(method, next(iter(raw["config_groups"].values()))["weights"])
    if method == "fp8" or (method == "modelopt" and "fp8" in name):
        block = raw.get("weight_block_size")
        if block:
            return Quantization(method, 8, None, scale_bytes=4, block_size=int(block[0]))
        return Quantization(method, 8, None)
    if method == "bitsandbytes":
        return Quantization(method, 4 if raw.get("load_in_4bit") else 8, 64)
    if method not in ("awq", "gptq"):
        raise ValueError(f"quantization {name.strip()!r} is not known")
    bits, group_size = int(raw["bits"]), int(raw["group_size"])
    return Quantization(method, bits, group_size if group_size > 0 else None, has_zeros=True)


def _compressed(method: str, weights: Mapping[str, Any]) -> Quantization:
    group_size = weights.get("group_size")
    has_zeros = not weights.get("symmetric", True)
    if weights.get("strategy") == "block":
        block_size = int(weights["block_structure"][0])
        return Quantization(method, int(weights["num_bits"]), None, 2, block_size=block_size)
    grouped = int(group_size) if group_size and int(group_size) > 0 else None
    return Quantization(method, int(weights["num_bits"]), grouped, has_zeros=has_zeros)
