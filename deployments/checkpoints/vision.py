"""The vision towers that can be counted without their files. PURE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionShape:
    """The vision tower of Qwen2.5-VL."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_patch_values: int  # that one patch holds: channels x frames x pixels
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
class SiglipShape:
    """The vision tower of Gemma 3, with the matrix into the language model."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_patch_values: int
    num_positions: int
    out_hidden_size: int

    @property
    def num_parameters(self) -> int:
        size, inner = self.hidden_size, self.intermediate_size
        block = 4 * (size * size + size) + 2 * size * inner + inner + size + 4 * size
        embedding = self.num_patch_values * size + size + self.num_positions * size
        projector = size * self.out_hidden_size + size
        return embedding + self.num_layers * block + 2 * size + projector


def vision_of(
    raw: Mapping[str, Any], model_type: str, hidden_size: int
) -> VisionShape | SiglipShape:
    """Read a `vision_config`.

    Raises:
        KeyError, TypeError, ValueError: it is of a kind that is not known here.
    """
    if model_type == "gemma3":
        patch = int(raw["patch_size"])
        return SiglipShape(
            num_layers=int(raw["num_hidden_layers"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_patch_values=3 * patch**2,
            num_positions=(int(raw["image_size"]) // patch) ** 2,
            out_hidden_size=hidden_size,
        )
    if model_type != "qwen2_5_vl":
        raise ValueError(f"the vision tower of {model_type!r} is not known")
    channels = raw.get("in_channels") or raw.get("in_chans") or 3
    return VisionShape(
        num_layers=int(raw["depth"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_patch_values=int(channels) * int(raw["temporal_patch_size"]) * raw["patch_size"] ** 2,
        num_merged=int(raw["spatial_merge_size"]) ** 2,
        out_hidden_size=int(raw["out_hidden_size"]),
    )
