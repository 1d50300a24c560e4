"""Reads a checkpoint's layers and sizes from its `config.json`. Pure: nothing is downloaded.

The sizes are those of the tensors as the checkpoint stores them, which is what vLLM loads: its
repacking for Marlin kernels moves bits and keeps their number.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.checkpoints.families import FAMILIES, Family, defaults_of
from deployments.checkpoints.kv_cache import CachedLayers, KvCache, LayerKind, Scheduling
from deployments.checkpoints.quantization import Quantization, quantization_of
from deployments.checkpoints.vision import SiglipShape, VisionShape, vision_of

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_KINDS = {
    "full_attention": LayerKind.FULL,
    "attention": LayerKind.FULL,
    "sliding_attention": LayerKind.SLIDING,
    "chunked_attention": LayerKind.FULL,  # vLLM takes less; how much depends on the context
    "linear_attention": LayerKind.LINEAR,
}


class UnknownShapeError(Exception):
    """The config does not say what is needed to plan for it."""


@dataclass(frozen=True)
class LatentShape:
    """Multi-head latent attention (DeepSeek): one small vector a token stands for all heads."""

    kv_rank: int
    query_rank: int | None  # None: the query has one full matrix
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class LinearShape:
    """Linear attention (Gated DeltaNet): a state for each sequence, whatever its length."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    state_value_bytes: int

    @property
    def conv_dim(self) -> int:
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim


@dataclass(frozen=True)
class ExpertsShape:
    """A mixture of experts in place of a feed-forward layer."""

    num_experts: int
    expert_size: int  # intermediate
    shared_size: int  # intermediate of the experts that see every token, together; 0: none
    num_dense_layers: int  # layers at the beginning that have a plain feed-forward layer


@dataclass(frozen=True)
class Shape:
    """The numbers of a transformer that decide what memory it takes."""

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
    is_tied: bool  # one matrix is embedding and output layer
    kinds: tuple[tuple[LayerKind, int], ...]  # layers of each kind that keep a cache
    window_tokens: int
    full_kv_values: int  # numbers that a full layer keeps of a token; other layers: by the heads
    latent: LatentShape | None
    linear: LinearShape | None
    experts: ExpertsShape | None
    quantization: Quantization | None
    vision: VisionShape | SiglipShape | None
    uncounted: str | None  # why the tensors cannot be counted

    def kv_cache(
        self,
        kv_cache_dtype: str,
        scheduling: Scheduling,
        block_tokens: int,
        num_spare_blocks: int,
    ) -> KvCache:
        """The KV cache in blocks; `auto` keeps the checkpoint's precision."""
        layers = self._cached_layers(kv_cache_dtype)
        return KvCache(layers, scheduling, block_tokens, num_spare_blocks)

    def kv_bytes_per_token(self, kv_cache_dtype: str) -> int:
        """What one more token of a long context takes in all layers."""
        return self.kv_cache(kv_cache_dtype, Scheduling(1, 1, False), 16, 0).bytes_per_token

    def _cached_layers(self, kv_cache_dtype: str) -> tuple[CachedLayers, ...]:
        value_bytes = 1 if kv_cache_dtype.startswith("fp8") else self.dtype_bytes
        sliding_values = 2 * self.num_kv_heads * self.head_dim
        each = {
            LayerKind.FULL: self.full_kv_values * value_bytes,
            LayerKind.SLIDING: sliding_values * value_bytes,
            LayerKind.LINEAR: self._state_bytes(),
        }
        return tuple(
            CachedLayers(kind, number, each[kind], self.window_tokens)
            for kind, number in self.kinds
        )

    def _state_bytes(self) -> int:
        linear = self.linear
        if linear is None:
            return 0
        state = linear.num_value_heads * linear.value_dim * linear.key_dim
        conv = linear.conv_dim * (linear.conv_kernel - 1)
        return state * linear.state_value_bytes + conv * self.dtype_bytes

    def weights_bytes(self) -> int:
        """All tensors. Raises UnknownShapeError for an architecture that is not counted here."""
        family = FAMILIES.get(self.model_type)
        if family is None:
            raise UnknownShapeError(f"the tensors of {self.model_type!r} cannot be counted")
        if self.uncounted:
            raise UnknownShapeError(f"the tensors cannot be counted: {self.uncounted}")
        num_linear = dict(self.kinds).get(LayerKind.LINEAR, 0)
        num_dense = self.experts.num_dense_layers if self.experts else self.num_layers
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        plain = self.hidden_size + embeddings + (self.vision.num_parameters if self.vision else 0)
        return (
            (self.num_layers - num_linear) * self._attention_bytes(family)
            + num_linear * self._linear_attention_bytes()
            + num_dense * self._feed_forward_bytes(self.intermediate_size)
            + (self.num_layers - num_dense) * self._experts_bytes(family)
            + (self.num_layers * family.num_norms * self.hidden_size + plain) * self.dtype_bytes
        )

    def _attention_bytes(self, family: Family) -> int:
        if self.latent:
            return self._latent_bytes(self.latent)
        size, q_size = self.hidden_size, self.num_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        made = (2 if family.has_query_gate else 1) * q_size
        matrices = ((size, made), (size, kv_size), (size, kv_size), (q_size, size))
        num_plain = 2 * self.head_dim if family.has_qk_norms else 0
        if family.has_qkv_bias or family.has_all_biases:
            num_plain += q_size + 2 * kv_size
        if family.has_all_biases:
            num_plain += size + self.num_heads
        of_matrices = sum(self._attention_matrix(*matrix) for matrix in matrices)
        return of_matrices + num_plain * self.dtype_bytes

    def _latent_bytes(self, latent: LatentShape) -> int:
        size, rank = self.hidden_size, latent.kv_rank
        q_size = self.num_heads * (latent.nope_dim + latent.rope_dim)
        kv_size = self.num_heads * (latent.nope_dim + latent.value_dim)
        matrices = [(size, rank + latent.rope_dim), (rank, kv_size)]
        matrices.append((self.num_heads * latent.value_dim, size))
        if latent.query_rank:
            matrices += [(size, latent.query_rank), (latent.query_rank, q_size)]
        else:
            matrices.append((size, q_size))
        num_plain = rank + (latent.query_rank or 0)
        return sum(self._attention_matrix(*m) for m in matrices) + num_plain * self.dtype_bytes

    def _linear_attention_bytes(self) -> int:
        linear = self.linear
        if linear is None:
            return 0
        size, heads = self.hidden_size, linear.num_value_heads
        value_size = heads * linear.value_dim
        num_plain = linear.conv_dim * linear.conv_kernel + 2 * heads + linear.value_dim
        num_plain += size * 2 * heads  # the small matrices of decay and gate stay unquantized
        return (
            self._linear_bytes(size, linear.conv_dim + value_size)
            + self._linear_bytes(value_size, size)
            + num_plain * self.dtype_bytes
        )

    def _feed_forward_bytes(self, inner: int) -> int:
        gate_and_up = 2 * self._linear_bytes(self.hidden_size, inner)
        return gate_and_up + self._linear_bytes(inner, self.hidden_size)

    def _experts_bytes(self, family: Family) -> int:
        experts = self.experts
        if experts is None:
            return 0
        size, number = self.hidden_size, experts.num_experts
        num_plain = size * number  # the router
        if family.has_all_biases:
            num_plain += number + number * (2 * experts.expert_size + size)
        if experts.shared_size and family.has_shared_gate:
            num_plain += size
        shared = self._feed_forward_bytes(experts.shared_size) if experts.shared_size else 0
        each = self._feed_forward_bytes(experts.expert_size)
        return number * each + shared + num_plain * self.dtype_bytes

    def _attention_matrix(self, num_in: int, num_out: int) -> int:
        if self.quantization and self.quantization.only_experts:
            return num_in * num_out * self.dtype_bytes
        return self._linear_bytes(num_in, num_out)

    def _linear_bytes(self, num_in: int, num_out: int) -> int:
        if self.quantization:
            return self.quantization.linear_bytes(num_in, num_out)
        return num_in * num_out * self.dtype_bytes


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read a `config.json`, in the layout of transformers 4 or 5.

    Raises:
        UnknownShapeError: a number is missing, or none.
    """
    try:
        return _shape_of(config)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as exc:
        raise UnknownShapeError(f"config.json cannot be planned with: {exc!r}") from exc


def _shape_of(config: Mapping[str, Any]) -> Shape:
    model_type = str(config["model_type"])
    inner = config.get("text_config") or config
    # A vision model's own text may name another family than the whole: mistral3 holds a mistral.
    text = {**defaults_of(model_type), **{k: v for k, v in inner.items() if v is not None}}
    hidden_size, num_heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    num_kv_heads = int(text.get("num_key_value_heads") or num_heads)
    head_dim = int(text.get("head_dim") or hidden_size // num_heads)
    dtype = text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtype_bytes = _DTYPE_BYTES[str(dtype).removeprefix("torch.")]
    latent = _latent_of(text)
    is_tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    uncounted: list[str] = []
    quantization = vision = None
    try:
        if config.get("quantization_config"):
            quantization = quantization_of(config["quantization_config"])
    except (KeyError, TypeError, ValueError) as exc:
        uncounted.append(f"quantization_config: {exc}")
    try:
        if config.get("vision_config"):
            vision = vision_of(config["vision_config"], model_type, hidden_size)
    except (KeyError, TypeError, ValueError) as exc:
        uncounted.append(f"vision_config: {exc}")
    experts = _experts_of(text, model_type)
    kinds = _kinds_of(text)
    return Shape(
        model_type=model_type,
        num_layers=int(text["num_hidden_layers"]),
        hidden_size=hidden_size,
        intermediate_size=_intermediate_of(text, experts),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=int(text["vocab_size"]),
        max_context_tokens=int(text["max_position_embeddings"]),
        dtype_bytes=dtype_bytes,
        is_tied=bool(is_tied),
        kinds=kinds,
        window_tokens=int(text.get("sliding_window") or 0),
        full_kv_values=_full_kv_values(text, latent, num_kv_heads, head_dim),
        latent=latent,
        linear=_linear_of(text, dtype_bytes) if _has(kinds, LayerKind.LINEAR) else None,
        experts=experts,
        quantization=quantization,
        vision=vision,
        uncounted="; ".join(uncounted) or None,
    )


def _has(kinds: tuple[tuple[LayerKind, int], ...], kind: LayerKind) -> bool:
    return any(found is kind for found, _ in kinds)


def _intermediate_of(text: Mapping[str, Any], experts: ExpertsShape | None) -> int:
    if experts and not experts.num_dense_layers:  # qwen3_5_moe has none
        return int(text.get("intermediate_size") or 0)
    return int(text["intermediate_size"])


def _kinds_of(text: Mapping[str, Any]) -> tuple[tuple[LayerKind, int], ...]:
    """The layers of each kind, of those that keep a cache of their own.

    (1) A list says it. (2) Every n-th layer has full attention, the others a window. (3) Every n-th
    has full attention, the others are linear. (4) A window alone is every layer's.
    """
    number = int(text["num_hidden_layers"])
    has_window = bool(text.get("sliding_window")) and text.get("use_sliding_window") is not False
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    interval = text.get("full_attention_interval")
    kinds = [LayerKind.FULL] * number
    if text.get("layer_types"):  # (1)
        kinds = [_KINDS[name] for name in text["layer_types"]]
        if not has_window:
            kinds = [LayerKind.FULL if k is LayerKind.SLIDING else k for k in kinds]
    elif pattern and has_window:  # (2)
        kinds = _alternating(number, int(pattern), LayerKind.SLIDING)
    elif interval:  # (3)
        kinds = _alternating(number, int(interval), LayerKind.LINEAR)
    elif has_window and "max_window_layers" not in text:  # (4)
        kinds = [LayerKind.SLIDING] * number
    own = number - int(text.get("num_kv_shared_layers") or 0)  # the last ones read others' caches
    if len(kinds) != number or own < 1:
        raise ValueError(f"layer_types names {len(kinds)} layers, and there are {number}")
    if set(kinds[:own]) == {LayerKind.LINEAR}:
        raise ValueError("no layer has attention")
    return tuple(Counter(kinds[:own]).items())


def _alternating(number: int, interval: int, other: LayerKind) -> list[LayerKind]:
    return [other if (i + 1) % interval else LayerKind.FULL for i in range(number)]


def _full_kv_values(
    text: Mapping[str, Any], latent: LatentShape | None, num_kv_heads: int, head_dim: int
) -> int:
    if latent:
        return latent.kv_rank + latent.rope_dim
    heads = int(text.get("num_global_key_value_heads") or num_kv_heads)  # Gemma 4
    return 2 * heads * int(text.get("global_head_dim") or head_dim)


def _latent_of(text: Mapping[str, Any]) -> LatentShape | None:
    if not text.get("kv_lora_rank"):
        return None
    return LatentShape(
        kv_rank=int(text["kv_lora_rank"]),
        query_rank=int(text["q_lora_rank"]) if text.get("q_lora_rank") else None,
        rope_dim=int(text["qk_rope_head_dim"]),
        nope_dim=int(text["qk_nope_head_dim"]),
        value_dim=int(text["v_head_dim"]),
    )


def _linear_of(text: Mapping[str, Any], dtype_bytes: int) -> LinearShape:
    state_dtype = text.get("mamba_ssm_dtype")
    return LinearShape(
        num_key_heads=int(text["linear_num_key_heads"]),
        num_value_heads=int(text["linear_num_value_heads"]),
        key_dim=int(text["linear_key_head_dim"]),
        value_dim=int(text["linear_value_head_dim"]),
        conv_kernel=int(text["linear_conv_kernel_dim"]),
        state_value_bytes=_DTYPE_BYTES[state_dtype] if state_dtype else dtype_bytes,
    )


def _experts_of(text: Mapping[str, Any], model_type: str) -> ExpertsShape | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    number = next((int(text[name]) for name in names if text.get(name)), 0)
    if not number:
        return None
    expert_size = int(text.get("moe_intermediate_size") or text["intermediate_size"])
    shared_size = int(text.get("shared_expert_intermediate_size") or 0)
    shared_size += int(text.get("n_shared_experts") or 0) * expert_size
    dense = int(text.get("first_k_dense_replace") or 0) + len(text.get("mlp_only_layers") or ())
    if int(text.get("decoder_sparse_step") or 1) != 1:
        raise ValueError(f"decoder_sparse_step of {model_type!r} is not 1")
    return ExpertsShape(number, expert_size, shared_size, dense)
