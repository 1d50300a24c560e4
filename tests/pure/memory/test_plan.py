"""The memory plan: the published figures of Qwen2.5, and what is said of what does not fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.checkpoints.shape import Shape, UnknownShapeError, shape_of
from deployments.memory.plan import (
    CUDA_RESERVED_BYTES,
    GIB,
    MAX_SHARE_WSL2,
    RTX_5080_BYTES,
    Overhead,
    Plan,
    Room,
    overhead_estimate,
    plan,
)
from deployments.settings import PROJECT, AppArgs, EngineSettings, known_checkpoints, load_settings

KNOWN = known_checkpoints(PROJECT / "configs")
CODER, CODER_AWQ = "Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"
CODER_INT8 = "Qwen/Qwen2.5-Coder-7B-Instruct-GPTQ-Int8"
BIG, BIG_AWQ = "Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-14B-Instruct-AWQ"
BIG_INT8 = "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int8"
VL, VL_AWQ = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"
VL_FP8 = "RedHatAI/Qwen2.5-VL-7B-Instruct-FP8-dynamic"

SHIPPED = load_settings(AppArgs(profile="rtx5080"), has_gpu=False).models
CARD = Room("cuda", RTX_5080_BYTES)
LINUX = Room("cuda", RTX_5080_BYTES - CUDA_RESERVED_BYTES)  # as CUDA gives the card out
WSL2 = Room("cuda", RTX_5080_BYTES, max_share=MAX_SHARE_WSL2)
SHAPE = shape_of(
    {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
)


def engine(max_model_len: int = 32768, **settings: object) -> EngineSettings:
    fields = {"max_num_seqs": 1, "max_num_batched_tokens": 1024, **settings}
    return EngineSettings.model_validate({"max_model_len": max_model_len, **fields})


def plan_of(
    checkpoint: str, utilization: float = 0.85, kv: str = "auto", room: Room = CARD, **settings: int
) -> Plan:
    shape = shape_of(KNOWN[checkpoint])
    return plan(
        "model",
        checkpoint,
        shape,
        engine(gpu_memory_utilization=utilization, kv_cache_dtype=kv, **settings),
        room,
        weights_bytes=shape.weights_bytes(),
        overhead=overhead_estimate(shape.vision is not None, "cuda"),
    )


# --- published figures ---


@pytest.mark.parametrize(
    ("checkpoint", "weights_gib"),
    [
        (CODER, 14.19),
        (CODER_AWQ, 5.19),
        (CODER_INT8, 8.25),
        (BIG_AWQ, 9.29),
        (VL, 15.45),
        (VL_AWQ, 6.45),
        (VL_FP8, 9.37),
    ],
)
def test_weights_are_the_published_ones(checkpoint, weights_gib):
    assert abs(shape_of(KNOWN[checkpoint]).weights_bytes() / GIB - weights_gib) < 0.006


@pytest.mark.parametrize(
    ("checkpoint", "dtype", "num_bytes"),
    [
        (CODER_AWQ, "auto", 57_344),
        (CODER_AWQ, "fp8", 28_672),
        (VL_AWQ, "auto", 57_344),
        (VL_AWQ, "fp8", 28_672),
        (BIG_AWQ, "auto", 196_608),
        (BIG_AWQ, "fp8", 98_304),
    ],
)
def test_kv_bytes_a_token_are_the_published_ones(checkpoint, dtype, num_bytes):
    assert shape_of(KNOWN[checkpoint]).kv_bytes_per_token(dtype) == num_bytes


def test_tokens_of_the_14b_on_the_card_are_the_published_ones():
    assert plan_of(BIG_AWQ).kv_room_tokens == 16_560
    assert plan_of(BIG_AWQ, kv="fp8").kv_room_tokens == 33_152


@pytest.mark.parametrize(
    ("checkpoint", "at_085", "at_090"),
    [
        (CODER_AWQ, (133_760, 267_536), (148_672, 297_344)),
        (CODER_INT8, (76_432, 152_864), (91_328, 182_672)),
        (BIG_AWQ, (16_576, 33_168), (20_928, 41_856)),
        (VL_AWQ, (95_184, 190_384), (110_096, 220_192)),
        (VL_FP8, (40_512, 81_024), (55_424, 110_848)),
    ],
)
def test_tokens_of_every_checkpoint_are_the_published_ones(checkpoint, at_085, at_090):
    """To a few blocks of 16: the table leaves out some scales, and the spare blocks."""
    for utilization, published in ((0.85, at_085), (0.90, at_090)):
        for kv, tokens in zip(("auto", "fp8"), published, strict=True):
            found = plan_of(checkpoint, utilization, kv).kv_room_tokens
            assert abs(found - tokens) <= 8 * 16, (utilization, kv)


@pytest.mark.parametrize("checkpoint", [CODER, BIG, BIG_INT8, VL])
@pytest.mark.parametrize("utilization", [0.85, 0.90])
def test_unquantized_checkpoints_leave_no_room(checkpoint, utilization):
    made = plan_of(checkpoint, utilization, "fp8")
    assert (made.kv_room_tokens, made.fits) == (0, False)


def test_every_shipped_model_fits_the_card_and_leaves_the_advised_headroom():
    settings = load_settings(AppArgs(profile="rtx5080"), has_gpu=False)
    for spec in settings.models.values():
        shape = shape_of(KNOWN[spec.checkpoint])
        overhead = overhead_estimate(spec.vision, "cuda")
        weights_bytes = shape.weights_bytes()
        made = plan(
            spec.name, "", shape, spec.engine, LINUX, weights_bytes=weights_bytes, overhead=overhead
        )
        assert made.fits, made.reason
        assert made.context_tokens == 32768
        assert made.headroom_bytes > 1.8 * GIB


# --- what does not fit, and what would make it ---


def test_kv_cache_that_is_too_small_is_told_with_what_would_help():
    made = plan_of(BIG_AWQ)
    assert made.reason == (
        "weights 9.29 GiB and overhead 1.20 GiB leave room for 16,560 tokens of context in "
        "13.53 GiB, and at least 32,768 are wanted"
    )
    assert made.advice == (
        "kv_cache_dtype: fp8, with attention_backend: TRITON_ATTN",
        "max_model_len: 16560",
        "a checkpoint of at most 9.33 GiB and kv_cache_dtype: fp8",
        "a card with 20 GiB",
    )


def test_every_remedy_of_the_14b_does_make_it_fit():
    assert plan_of(BIG_AWQ, kv="fp8").fits
    assert plan_of(BIG_AWQ, max_model_len=16560).fits
    assert not plan_of(BIG_AWQ, max_model_len=16561).fits
    assert plan_of(BIG_AWQ, room=Room("cuda", 20 * GIB)).fits
    assert not plan_of(BIG_AWQ, room=Room("cuda", 19 * GIB)).fits


def test_larger_share_of_the_card_is_advised_where_it_helps():
    made = plan_of(BIG_AWQ, utilization=0.80, kv="fp8")
    assert not made.fits
    (advised,) = [a for a in made.advice if a.startswith("gpu_memory_utilization")]
    assert advised == "gpu_memory_utilization: 0.85"
    assert plan_of(BIG_AWQ, utilization=0.85, kv="fp8").fits


def test_weights_larger_than_the_card_advise_a_smaller_checkpoint():
    made = plan_of(CODER)
    assert "leave no room for a KV cache" in made.reason
    assert made.advice == (
        "a checkpoint of at most 11.46 GiB and kv_cache_dtype: fp8",
        "a card with 21 GiB",
    )


def test_more_context_than_the_model_knows_is_refused():
    made = plan_of(CODER_AWQ, max_model_len=65536)
    assert made.reason == "the model has 32,768 tokens of context, not 65,536"
    assert made.advice == ("max_model_len: 32768",)


def test_tight_plan_and_thin_headroom_are_told():
    assert plan_of(BIG_AWQ, kv="fp8").advice == ("tight: 0.04 GiB to spare for the context",)
    (headroom,) = plan_of(VL_AWQ, utilization=0.92).advice
    assert headroom.startswith("1.27 GiB are left for other programs")


def test_card_that_others_fill_is_told_with_who_holds_it():
    room = replace(CARD, free_bytes=6 * GIB, holders=("process 7 (blender) 9.00 GiB",))
    made = plan_of(CODER_AWQ, room=room)
    assert made.reason == (
        "8.14 GiB are needed, and other programs leave 6.00 GiB of the GPU's 15.92 GiB free; "
        "held by: process 7 (blender) 9.00 GiB"
    )
    assert made.advice == ("ending programs that hold 2.14 GiB",)


def test_what_the_present_engine_gives_back_counts_as_free():
    room = replace(CARD, free_bytes=GIB, returned_bytes=int(7.2 * GIB))
    assert plan_of(CODER_AWQ, room=room).fits
    assert not plan_of(CODER_AWQ, room=replace(room, returned_bytes=7 * GIB)).fits


# --- beside other programs, and under WSL2 ---


def shipped(name: str, room: Room) -> Plan:
    """A model of the GPU profile as its file stands."""
    spec = SHIPPED[name]
    shape = shape_of(KNOWN[spec.checkpoint])
    overhead = overhead_estimate(spec.vision, "cuda")
    weights_bytes = shape.weights_bytes()
    return plan(name, "", shape, spec.engine, room, weights_bytes=weights_bytes, overhead=overhead)


def beside(held_gib: float, card: Room = LINUX) -> Room:
    return replace(card, free_bytes=int(card.total_bytes - held_gib * GIB))


@pytest.mark.parametrize("name", ["qwen-14b", "qwen-coder", "qwen-vl"])
def test_every_shipped_model_has_its_whole_context_on_an_idle_desktop(name):
    """X and a browser hold 0.71 GiB under Linux."""
    made = shipped(name, beside(0.71))
    assert (made.fits, made.context_tokens, made.is_shortened) == (True, 32768, False)


@pytest.mark.parametrize("name", ["qwen-coder", "qwen-vl"])
def test_the_7b_models_load_beside_4_gib_of_blender(name):
    """With their whole context, and a smaller KV cache that leaves a GiB for Blender to grow."""
    alone, made = shipped(name, LINUX), shipped(name, beside(4))
    assert made.context_tokens == 32768
    assert made.kv_cache_bytes < alone.kv_cache_bytes
    left_bytes = made.available_bytes - made.engine_bytes
    assert left_bytes >= GIB or made.kv_cache_bytes == made.kv_wanted_bytes


def test_model_that_needs_8_gib_loads_where_9_are_free():
    assert shipped("qwen-coder", replace(LINUX, free_bytes=9 * GIB)).fits


def test_longest_context_that_fits_is_taken_down_to_the_floor():
    made = shipped("qwen-14b", beside(4))
    assert (made.fits, made.is_shortened, made.context_tokens) == (True, True, 10608)
    assert made.advice == ("a context of 10,608 tokens fits, not 32,768",)
    refused = shipped("qwen-14b", beside(5))
    assert (refused.fits, refused.context_tokens) == (False, 0)
    assert refused.reason.startswith("11.25 GiB are needed, and other programs leave 10.47 GiB")
    assert refused.advice == ("ending programs that hold 0.78 GiB",)


def test_14b_has_a_shorter_context_under_wsl2():
    """0.80 of 15.92 GiB."""
    made = shipped("qwen-14b", WSL2)
    assert made.limit_bytes / WSL2.total_bytes == pytest.approx(0.80, abs=1e-6)
    assert 24_000 <= made.context_tokens < 32_768
    assert shipped("qwen-vl", WSL2).context_tokens == 32768


@given(
    held_gib=st.floats(0, 15),
    name=st.sampled_from(["qwen-14b", "qwen-coder", "qwen-vl"]),
    card=st.sampled_from([LINUX, WSL2]),
)
def test_an_engine_is_never_given_what_is_not_there(held_gib, name, card):
    """All of it: weights, overhead with the CUDA context, and KV cache for at least one context."""
    made = shipped(name, beside(held_gib, card))
    if made.fits:
        assert made.engine_bytes <= min(made.limit_bytes, made.available_bytes)
        fixed_bytes = made.weights_bytes + made.overhead_bytes
        assert made.engine_bytes == fixed_bytes + made.kv_cache_bytes
        one_context_bytes = made.context_tokens * made.kv_bytes_per_token
        assert made.kv_cache_bytes >= one_context_bytes
        assert made.context_floor_tokens <= made.context_tokens <= made.context_wanted_tokens
        # vLLM's gate, which it asks with its own context on the card
        assert made.utilization * made.total_bytes <= made.available_bytes - GIB // 2
    else:
        assert made.context_tokens == 0
        assert made.floor_bytes > min(made.limit_bytes, made.available_bytes)


# --- without a GPU ---


def plan_on_host(
    available_bytes: int, kv_space_bytes: int | None = GIB, max_model_len: int = 128
) -> Plan:
    return plan(
        "model",
        "",
        SHAPE,
        engine(max_model_len, kv_cache_dtype="auto"),
        Room("cpu", 8 * GIB, free_bytes=available_bytes),
        weights_bytes=GIB,
        overhead=Overhead(GIB, "estimate"),
        kv_space_bytes=kv_space_bytes,
    )


def test_host_needs_weights_overhead_and_the_set_kv_space():
    assert plan_on_host(3 * GIB).fits
    made = plan_on_host(3 * GIB - GIB // 100)
    assert made.reason == (
        "3.00 GiB are needed, and other programs leave 2.99 GiB of the host's 8.00 GiB free"
    )
    assert made.advice == ("ending programs that hold 0.01 GiB",)


def test_smaller_kv_space_is_advised_where_it_helps():
    made = plan_on_host(4 * GIB, 100 * GIB)
    assert made.advice == ("VLLM_CPU_KVCACHE_SPACE: 2",)
    assert plan_on_host(4 * GIB, 2 * GIB).fits


def test_kv_space_too_small_for_the_context_is_told():
    """One block of 128 tokens of this model takes 4096 bytes, and one more is kept back."""
    assert plan_on_host(3 * GIB, 8192).fits
    made = plan_on_host(3 * GIB, 8191)
    assert "128 tokens of context take more" in made.reason
    assert made.advice == ("VLLM_CPU_KVCACHE_SPACE: 1",)


def test_kv_dtype_of_a_gpu_does_not_reach_the_plan_of_a_host():
    settings, overhead = engine(128, kv_cache_dtype="fp8"), Overhead(1, "estimate")
    made = plan("m", "", SHAPE, settings, Room("cpu", GIB), weights_bytes=1, overhead=overhead)
    assert made.kv_bytes_per_token == SHAPE.kv_bytes_per_token("auto")


# --- any model ---


@given(
    weights=st.integers(0, 20 * GIB),
    overhead=st.integers(0, 4 * GIB),
    wanted=st.integers(1, 40_000),
    utilization=st.floats(0.1, 0.94),
    kv=st.sampled_from(["auto", "fp8"]),
)
def test_a_plan_fits_exactly_where_its_tokens_do(weights, overhead, wanted, utilization, kv):
    shape = replace(shape_of(KNOWN[BIG_AWQ]), max_context_tokens=40_000)
    settings = engine(wanted, gpu_memory_utilization=utilization, kv_cache_dtype=kv)
    made = plan(
        "m",
        "",
        shape,
        settings,
        CARD,
        weights_bytes=weights,
        overhead=Overhead(overhead, "estimate"),
    )
    assert made.fits == (made.needed_bytes <= made.limit_bytes) == (made.reason is None)
    assert made.fits == (made.kv_room_tokens >= wanted)
    assert made.context_fits_tokens <= made.kv_room_tokens
    if not made.fits:
        assert made.advice
    json.dumps(asdict(made))


def test_remedy_of_a_longer_kv_cache_is_never_longer_than_it_fits():
    for remedy in plan_of(BIG_AWQ).advice:
        if remedy.startswith("max_model_len: "):
            assert plan_of(BIG_AWQ, max_model_len=int(remedy.split()[1])).fits


# --- reading config.json ---


def test_both_layouts_of_a_vision_config_are_the_same_shape():
    """transformers 4 writes the language model's numbers at the top, 5 under `text_config`."""
    flat = dict(KNOWN[VL_AWQ])
    vision, quantization = flat.pop("vision_config"), flat.pop("quantization_config")
    nested = {
        "model_type": flat["model_type"],
        "tie_word_embeddings": False,
        "text_config": flat,
        "vision_config": vision,
        "quantization_config": quantization,
    }
    assert shape_of(nested) == shape_of(KNOWN[VL_AWQ])


def test_compressed_tensors_are_read_like_plain_fp8():
    group = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    shape = shape_of({**KNOWN[VL_FP8], "quantization_config": config})
    assert shape.weights_bytes() == shape_of(KNOWN[VL_FP8]).weights_bytes()


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_config_without_a_number_is_an_unknown_shape(missing):
    config = {k: v for k, v in KNOWN[BIG_AWQ].items() if k != missing}
    with pytest.raises(UnknownShapeError, match=missing):
        shape_of(config)


@pytest.mark.parametrize("config", [{}, {"model_type": 5}, {"text_config": []}])
def test_config_of_something_else_is_an_unknown_shape(config):
    with pytest.raises(UnknownShapeError):
        shape_of(config)


def test_tensors_of_an_unknown_architecture_are_not_counted():
    shape: Shape = replace(SHAPE, model_type="mamba")
    with pytest.raises(UnknownShapeError, match="mamba"):
        shape.weights_bytes()


def test_counted_tensors_are_those_of_a_real_checkpoint():
    """SmolLM2-135M has 134,515,008 parameters, its output layer tied to its embedding."""
    smollm2 = {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    assert shape_of(smollm2).weights_bytes() == 2 * 134_515_008


def test_shapes_file_knows_every_checkpoint_of_the_gpu_profile():
    for path in sorted(Path(PROJECT / "configs" / "models").glob("*.yaml")):
        spec = load_settings(AppArgs(profile="rtx5080"), has_gpu=False).models[path.stem]
        assert spec.checkpoint in KNOWN
