"""The memory plan's flags under vLLM's own rules, on the card as Linux and WSL2 give it out."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.checkpoints.shape import shape_of
from deployments.memory.plan import Overhead, Room, plan
from deployments.settings import PROJECT, AppArgs, known_checkpoints, load_settings
from tests.pure.memory.vllm_memory import GIB, Engine, Refused, start

KNOWN = known_checkpoints(PROJECT / "configs")
SHIPPED = load_settings(AppArgs(profile="rtx5080"), has_gpu=False).models
LINUX, WSL2 = int(15.47 * GIB), int(15.92 * GIB)


class NotPlannedError(Exception):
    """The plan says that the model does not fit."""


def engine_of(name: str, activation_gib: float = 0.6, compile_gib: float = 0.0) -> Engine:
    spec = SHIPPED[name]
    shape = shape_of(KNOWN[spec.checkpoint])
    return Engine(
        weights_bytes=shape.weights_bytes(),
        context_bytes=int(0.45 * GIB),
        activation_bytes=int(activation_gib * GIB),
        compile_bytes=int(compile_gib * GIB),
        kv_bytes_per_token=shape.kv_bytes_per_token(spec.engine.kv_cache_dtype),
    )


def started(name: str, engine: Engine, total_bytes: int, free_bytes: int) -> tuple[int, int]:
    """The KV cache and the context of an engine that gets the plan's flags."""
    spec = SHIPPED[name]
    made = plan(
        name,
        spec.checkpoint,
        shape_of(KNOWN[spec.checkpoint]),
        spec.engine,
        Room("cuda", total_bytes, free_bytes, max_share=0.8 if total_bytes == WSL2 else 1.0),
        weights_bytes=engine.weights_bytes,
        overhead=Overhead(int((2.0 if spec.vision else 1.2) * GIB), "estimate"),
    )
    if not made.fits:
        raise NotPlannedError(made.reason)
    kv_bytes = start(
        engine,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        utilization=made.utilization,
        max_model_len=made.context_tokens,
        kv_cache_memory_bytes=made.kv_cache_bytes,
    )
    return kv_bytes, made.context_tokens


@pytest.mark.parametrize("name", list(SHIPPED))
@pytest.mark.parametrize("compile_gib", [0.0, 1.85])
def test_every_model_starts_on_an_idle_desktop_also_where_it_compiles(name, compile_gib):
    """A start that compiles was seen to take up to 1.85 GiB more (1Cat-vLLM#518), before the KV
    cache is there."""
    engine = engine_of(name, compile_gib=compile_gib)
    _, context = started(name, engine, LINUX, LINUX - int(0.71 * GIB))
    assert context == 32768


def test_vllms_own_sizing_refuses_the_14b_where_it_compiles():
    """What the plan's flags replace: 0.85 of what CUDA gives out."""
    flags = {"total_bytes": LINUX, "free_bytes": LINUX, "utilization": 0.85}
    assert start(engine_of("qwen-14b"), **flags, max_model_len=32768) >= 3 * GIB
    with pytest.raises(Refused, match="max seq len"):
        start(engine_of("qwen-14b", compile_gib=0.64), **flags, max_model_len=32768)


@pytest.mark.parametrize("name", list(SHIPPED))
def test_every_model_starts_under_wsl2_beside_windows(name):
    _, context = started(name, engine_of(name), WSL2, WSL2 - int(1.9 * GIB))
    assert context >= 24_000


def test_proof_of_room_counts_the_engines_own_context():
    """Without it an engine would be started that vLLM refuses, after the old one is gone."""
    name, engine = "qwen-14b", engine_of("qwen-14b")
    for held_mib in range(0, 6000, 100):
        free_bytes = LINUX - held_mib * 2**20
        try:
            kv_bytes, context = started(name, engine, LINUX, free_bytes)
        except NotPlannedError:
            break
        assert kv_bytes >= context * engine.kv_bytes_per_token
    assert held_mib > 4000


@given(
    name=st.sampled_from(list(SHIPPED)),
    held_gib=st.floats(0, 8),
    activation_gib=st.floats(0.2, 0.7),
    total_bytes=st.sampled_from([LINUX, WSL2]),
)
def test_an_engine_that_the_plan_lets_start_is_refused_by_none_of_vllms_rules(
    name, held_gib, activation_gib, total_bytes
):
    """As long as it needs no more than the overhead that is planned."""
    free_bytes = int(total_bytes - held_gib * GIB)
    with suppress(NotPlannedError):
        started(name, engine_of(name, activation_gib), total_bytes, free_bytes)
