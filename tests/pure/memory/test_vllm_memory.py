"""The model of vLLM's rule gives the numbers that vLLM has given, and shows where it refuses."""

import pytest

from deployments.checkpoints.shape import shape_of
from deployments.settings import PROJECT, known_checkpoints
from tests.pure.memory.vllm_memory import (
    BLOCK_TOKENS,
    GIB,
    MIB,
    ON_LINUX,
    ON_WSL2,
    Card,
    Engine,
    StartRefused,
    idle,
    start,
)

KNOWN = known_checkpoints(PROJECT / "configs")
CONTEXT = 32_768


def engine_of(checkpoint: str, kv: str, overhead_gib: float = 0.0, **fields: int) -> Engine:
    """An engine whose overhead, as the plan counts it, is a step's activations."""
    shape = shape_of(KNOWN[checkpoint])
    return Engine(
        weights_bytes=shape.weights_bytes(),
        block_bytes=BLOCK_TOKENS * shape.kv_bytes_per_token(kv),
        max_model_len=fields.pop("max_model_len", CONTEXT),
        activations_bytes=int(overhead_gib * GIB),
        **fields,
    )


def big(overhead_gib: float, **fields: int) -> Engine:
    return engine_of("Qwen/Qwen2.5-14B-Instruct-AWQ", "fp8", overhead_gib, **fields)


def coder(overhead_gib: float, **fields: int) -> Engine:
    return engine_of("Qwen/Qwen2.5-Coder-7B-Instruct-AWQ", "auto", overhead_gib, **fields)


@pytest.mark.parametrize(
    ("card", "total_gib", "share_gib"), [(ON_LINUX, 15.47, 13.15), (ON_WSL2, 15.92, 13.53)]
)
def test_share_is_of_what_cuda_has(card: Card, total_gib: float, share_gib: float) -> None:
    """NVML tells 15.92 GiB of the card on either system."""
    assert round(card.total_bytes / GIB, 2) == total_gib
    words = rf"\(.*/{total_gib} GiB\) on startup is less than .* \(0.85, {share_gib} GiB\)"
    with pytest.raises(StartRefused, match=words):
        start(coder(1.2), card.beside(card.total_bytes - share_gib * GIB), 0.85)


def test_rtx_5090_on_linux_has_31_37_gib() -> None:
    """Of 31.84 (vllm#14452); 0.9 of it, where others leave that much, is 28.23."""
    card = idle(int(31.37 * GIB))
    with pytest.raises(StartRefused, match=r"\(0.9, 28.23 GiB\)"):
        start(coder(1.2), card.beside(2.8 * GIB), 0.9)


@pytest.mark.parametrize(("card", "others_gib"), [(ON_LINUX, 1.87), (ON_WSL2, 1.93)])
def test_other_programs_have_what_the_share_and_the_context_leave(
    card: Card, others_gib: float
) -> None:
    """0.45 GiB less than the share alone leaves: CUDA's context is there when vLLM first looks."""
    start(coder(1.2), card.beside((others_gib - 0.01) * GIB), 0.85)
    with pytest.raises(StartRefused, match="Free memory on device"):
        start(coder(1.2), card.beside((others_gib + 0.01) * GIB), 0.85)


def test_context_that_fits_is_that_of_published_plans() -> None:
    """7B: 133,760 tokens of a card of 15.92 GiB with 1.2 GiB of overhead; 14B: 33,168."""
    assert start(coder(1.2), ON_WSL2, 0.85).kv_tokens == 133_760
    assert start(big(1.2), ON_WSL2, 0.85).kv_tokens == 33_168
    assert start(big(1.2, max_model_len=28_976), ON_LINUX, 0.85).kv_tokens == 28_976


@pytest.mark.parametrize("max_model_len", [28_977, CONTEXT])
def test_context_that_does_not_fit_is_refused(max_model_len: int) -> None:
    with pytest.raises(StartRefused, match="To serve at least one request"):
        start(big(1.2, max_model_len=max_model_len), ON_LINUX, 0.85)


def test_big_model_starts_on_linux_where_its_overhead_is_below_0_86() -> None:
    start(big(0.85), ON_LINUX, 0.85)
    with pytest.raises(StartRefused, match=r"\(32768\), \(3.0 GiB KV cache is needed"):
        start(big(0.87), ON_LINUX, 0.85)


def test_first_start_is_charged_for_compiling() -> None:
    """The same flags start the second time: what is compiled is kept on disk."""
    with pytest.raises(StartRefused, match="To serve at least one request"):
        start(big(0.6), ON_LINUX, 0.85, is_compiled=False)
    assert start(big(0.6), ON_LINUX, 0.85).kv_tokens > CONTEXT


def test_start_that_reuses_what_the_first_has_measured_is_refused_at_the_edge() -> None:
    """vLLM counts its graphs twice in the record (vllm#57936), and keeps 150 MiB back."""
    engine = big(0.5, graphs_bytes=200 * MIB, graphs_estimate_bytes=250 * MIB)
    first = start(engine, ON_LINUX, 0.85)
    assert first.saved_kv_bytes == first.kv_bytes - 350 * MIB
    with pytest.raises(StartRefused, match="To serve at least one request"):
        start(engine, ON_LINUX, 0.85, kv_cache_memory_bytes=first.saved_kv_bytes)


@pytest.mark.parametrize("card", [ON_LINUX, ON_WSL2])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_kv_cache_of_a_size_that_is_given_does_not_hang_on_what_is_measured(
    card: Card, is_compiled: bool
) -> None:
    """The share is only the gate then: one for what the engine needs lets it start beside more."""
    engine = big(0.6)
    kv_bytes = engine.wanted_bytes + 2 * engine.block_bytes
    needed_bytes = engine.weights_bytes + engine.activations_bytes + kv_bytes
    share = needed_bytes / card.total_bytes
    flags = {"kv_cache_memory_bytes": kv_bytes, "is_compiled": is_compiled}
    started = start(engine, card.beside(1.0 * GIB), share, **flags)
    assert started.kv_tokens == CONTEXT + BLOCK_TOKENS
    assert started.saved_kv_bytes is None
    assert start(engine, card, 0.5, **flags).kv_bytes == start(engine, card, 0.9, **flags).kv_bytes


def test_small_model_starts_beside_a_scene_of_4_gib() -> None:
    """With a share of what it needs. A share of 0.85 is refused, and none of it would be used."""
    engine, beside = coder(1.2), ON_LINUX.beside(4.7 * GIB)
    kv_bytes = engine.wanted_bytes + 2 * engine.block_bytes
    share = (engine.weights_bytes + engine.activations_bytes + kv_bytes) / ON_LINUX.total_bytes
    assert start(engine, beside, share, kv_cache_memory_bytes=kv_bytes).kv_tokens > CONTEXT
    with pytest.raises(StartRefused, match="Free memory on device"):
        start(engine, beside, 0.85, kv_cache_memory_bytes=kv_bytes)


def test_kv_cache_that_is_larger_than_the_card_is_out_of_memory() -> None:
    """Its size is taken as it is given, whatever the share."""
    with pytest.raises(StartRefused, match="out of memory"):
        start(big(0.6), ON_LINUX, 0.5, kv_cache_memory_bytes=6 * GIB)
