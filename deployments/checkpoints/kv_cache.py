"""The size of a KV cache in vLLM's blocks, for layers of any kind. PURE.

vLLM has one pool of equal blocks. It puts the layers of one kind into groups of equal size, pads
the last group, and each group takes blocks of its own: for all tokens of a context (full
attention), for the tokens of its window and of the steps in flight (sliding), or for one state a
sequence (linear attention).
Source: `_get_kv_cache_groups_uniform_page_size` in vllm/v1/core/kv_cache_utils.py, and
vllm/v1/kv_cache_interface.py, at the version that requirements-gpu.lock names.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum

_STEPS_IN_FLIGHT = 2  # vLLM schedules a step while the one before computes
_ENDLESS_TOKENS = 2**20  # what is said of a pool in which a context of any length fits
_STATES_KEPT = 2  # of a sequence with prefix caching: one is written, one is kept to go on from


class LayerKind(Enum):
    """What a layer keeps of a sequence."""

    FULL = "full"  # key and value of every token
    SLIDING = "sliding"  # of the tokens in its window
    LINEAR = "linear"  # one state, however long the sequence is


@dataclass(frozen=True)
class Scheduling:
    """The settings of an engine that decide how many tokens and sequences are worked on at once."""

    max_num_seqs: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool


@dataclass(frozen=True)
class CachedLayers:
    """Layers of one kind."""

    kind: LayerKind
    num_layers: int
    bytes_each: int  # of one layer: for a token, or for a sequence (linear)
    window_tokens: int = 0  # sliding


class KvCache:
    """A pool of blocks for the layers of a model.

    `block_tokens`: the device's block; a larger one is taken where a linear layer's state would not
    fit into it, as vLLM does.
    """

    def __init__(
        self,
        layers: tuple[CachedLayers, ...],
        scheduling: Scheduling,
        block_tokens: int,
        num_spare_blocks: int,
    ) -> None:
        self._scheduling = scheduling
        self._num_spare_blocks = num_spare_blocks
        self._layers = layers
        token_bytes = max(x.bytes_each for x in layers if x.kind is not LayerKind.LINEAR)
        state_bytes = max((x.bytes_each for x in layers if x.kind is LayerKind.LINEAR), default=0)
        steps = max(1, math.ceil(state_bytes / (block_tokens * token_bytes)))
        self.block_tokens = steps * block_tokens
        self._page_bytes = self.block_tokens * token_bytes  # of one layer in one block
        fewest = min(x.num_layers for x in layers)
        most = max(x.num_layers for x in layers)
        self._group_size = most if most < 1.5 * fewest else fewest
        self._block_bytes = self._group_size * self._page_bytes

    @property
    def bytes_per_token(self) -> int:
        """What one more token takes, while no window is full."""
        growing = [x for x in self._layers if x.kind is LayerKind.FULL] or self._layers
        padded = [(self._num_groups(x) * self._group_size, x) for x in growing]
        return sum(num * x.bytes_each for num, x in padded if x.kind is not LayerKind.LINEAR)

    def size_bytes(self, num_tokens: int) -> int:
        """For one context of `num_tokens`, and the states of all sequences."""
        return (self._num_blocks(num_tokens) + self._num_spare_blocks) * self._block_bytes

    def num_tokens(self, size_bytes: int) -> int:
        """The longest context for which there is room."""
        num_blocks = max(size_bytes // self._block_bytes - self._num_spare_blocks, 0)
        has_end = any(x.kind is LayerKind.FULL for x in self._layers)
        counts = range(num_blocks + 1 if has_end else _ENDLESS_TOKENS // self.block_tokens + 1)
        fitting = bisect_right(
            counts, num_blocks, key=lambda count: self._num_blocks(count * self.block_tokens)
        )
        return max(fitting - 1, 0) * self.block_tokens

    def _num_blocks(self, num_tokens: int) -> int:
        return sum(self._num_groups(x) * self._blocks_each(x, num_tokens) for x in self._layers)

    def _num_groups(self, layers: CachedLayers) -> int:
        return math.ceil(layers.num_layers / self._group_size)

    def _blocks_each(self, layers: CachedLayers, num_tokens: int) -> int:
        if layers.kind is LayerKind.LINEAR:
            states = _STATES_KEPT if self._scheduling.enable_prefix_caching else 1
            return states * self._scheduling.max_num_seqs
        tokens = self._page_bytes // layers.bytes_each  # narrow layers have more tokens in a block
        if layers.kind is LayerKind.FULL:
            return math.ceil(num_tokens / tokens)
        in_flight = _STEPS_IN_FLIGHT * self._scheduling.max_num_batched_tokens
        kept = min(layers.window_tokens - 1 + in_flight, num_tokens)
        return math.ceil(kept / tokens) + 1  # a window may begin within a block
