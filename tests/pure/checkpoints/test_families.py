"""Public models, by the numbers of their `config.json`: parameters, bytes, and KV cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.checkpoints.kv_cache import KvCache, Scheduling
from deployments.checkpoints.shape import UnknownShapeError, shape_of
from deployments.memory.plan import CUDA_RESERVED_BYTES, GIB, RTX_5080_BYTES, Overhead, Room, plan
from deployments.settings import EngineSettings
from tests.pure.checkpoints import families

LINUX = Room("cuda", RTX_5080_BYTES - CUDA_RESERVED_BYTES)

# Parameters in billions, as they are commonly given; written without the hub at hand. On torch's
# meta device transformers' own models of these numbers have as many; Gemma 3 is off by 0.12 %.
PARAMETERS = [
    ("QWEN2_5_7B", 7.616),
    ("QWEN3_0_6B", 0.596),
    ("QWEN3_8B", 8.191),
    ("QWEN3_14B", 14.768),
    ("QWEN3_30B_A3B", 30.532),
    ("LLAMA_3_1_8B", 8.030),
    ("MISTRAL_7B_V01", 7.242),
    ("MISTRAL_7B_V03", 7.248),
    ("PHI_4", 14.660),
    ("MIXTRAL_8X7B", 46.703),
    ("GEMMA_2_9B", 9.242),
    ("GEMMA_3_12B", 12.187),
    ("GPT_OSS_20B", 20.915),
    ("DEEPSEEK_V2_LITE", 15.706),
    ("QWEN3_NEXT_80B", 80.0),
    ("QWEN3_5_TEXT", 9.0),
]


@pytest.mark.parametrize(("name", "billions"), PARAMETERS)
def test_parameters_are_as_many_as_the_model_is_known_for(name, billions):
    config = {k: v for k, v in getattr(families, name).items() if k != "quantization_config"}
    assert shape_of(config).weights_bytes() / 2e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize(
    ("name", "quantization", "gigabytes"),
    [
        ("QWEN3_14B", families.AWQ, 9.96),
        ("LLAMA_3_1_8B", families.AWQ, 5.73),
        ("GPT_OSS_20B", families.MXFP4, 13.76),
        ("QWEN3_8B", families.FP8_BLOCKS, 9.44),
    ],
)
def test_files_have_the_size_that_is_known(name, quantization, gigabytes):
    config = getattr(families, name) | {"quantization_config": quantization}
    assert shape_of(config).weights_bytes() / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (families.NVFP4, 4.5),  # a byte for 16 weights
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.25),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            4.5,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "group_size": 128, "symmetric": True}}
                },
            },
            4.125,
        ),
    ],
    ids=["nvfp4", "bitsandbytes", "gptq-channel", "compressed-nvfp4", "compressed-int4"],
)
def test_weights_take_their_bits_and_their_scales(quantization, bits):
    shape = shape_of(families.LLAMA_3_1_8B | {"quantization_config": quantization})
    assert shape.quantization is not None
    taken = shape.quantization.linear_bytes(4096, 14336) * 8 / (4096 * 14336)
    assert taken == pytest.approx(bits, rel=0.002)


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("QWEN2_5_7B", 57_344),
        ("QWEN3_8B", 147_456),
        ("QWEN3_14B", 163_840),
        ("QWEN3_30B_A3B", 98_304),
        ("LLAMA_3_1_8B", 131_072),
        ("MISTRAL_7B_V03", 131_072),
        ("PHI_4", 204_800),
        ("GEMMA_2_9B", 172_032),  # of 21 layers with full attention
        ("GEMMA_3_12B", 65_536),  # of 8
        ("GPT_OSS_20B", 24_576),  # of 12
        ("DEEPSEEK_V2_LITE", 31_104),  # 576 numbers a layer
        ("QWEN3_NEXT_80B", 24_576),  # of 12
        ("QWEN3_5_TEXT", 32_768),  # of 8
    ],
)
def test_token_of_a_long_context_takes_only_the_layers_that_keep_it(name, num_bytes):
    assert shape_of(getattr(families, name)).kv_bytes_per_token("auto") == num_bytes


def cache(name: str, scheduling: Scheduling | None = None, block_tokens: int = 16) -> KvCache:
    settings = scheduling or Scheduling(4, 1024, True)
    return shape_of(getattr(families, name)).kv_cache("auto", settings, block_tokens, 2)


def test_window_costs_no_more_than_itself_and_the_steps_in_flight():
    """Mistral 7B of old has a window of 4,096 in all layers: 4,095 and twice 1,024 tokens."""
    made = cache("MISTRAL_7B_V01")
    longest = made.size_bytes(10**6)
    assert longest == made.size_bytes(4095 + 2048)
    assert longest / 131_072 == pytest.approx(4095 + 2048, abs=64)
    assert made.num_tokens(longest) >= 4096


def test_window_is_not_filled_by_a_short_context():
    """Each group of layers rounds up to a block, and a window may begin within one."""
    short = cache("GEMMA_3_12B").size_bytes(512) / (48 * 8192)
    assert 512 < short < 512 + 4 * 16


def test_full_context_of_gemma_3_costs_a_fifth_of_what_full_attention_would():
    made = cache("GEMMA_3_12B").size_bytes(131_072)
    assert made < 131_072 * 48 * 8192 / 4.5
    assert made > 131_072 * 65_536


def test_linear_layers_cost_a_state_for_each_sequence():
    """Qwen3.5: 24 linear layers in three groups of 8; a state is 32 heads of 128 x 128, and three
    columns of the convolution. Blocks grow until a state fits, as vLLM says in its log."""
    state_bytes = 32 * 128 * 128 * 2 + 8192 * 3 * 2
    made = cache("QWEN3_5_TEXT", Scheduling(8, 1024, False))
    assert made.block_tokens == 272
    page_bytes = 272 * 4096
    assert state_bytes <= page_bytes
    assert made.size_bytes(0) == (8 * 3 + 2) * 8 * page_bytes
    assert made.size_bytes(272_000) - made.size_bytes(0) == 272_000 * 32_768


def test_prefix_caching_keeps_a_second_state():
    without, kept = (cache("QWEN3_5_TEXT", Scheduling(8, 1024, x)) for x in (False, True))
    states = 8 * 3 * 8 * 272 * 4096
    assert kept.size_bytes(1000) - without.size_bytes(1000) == states


def test_states_in_float32_take_about_twice_as_much():
    config = families.QWEN3_5_TEXT | {"mamba_ssm_dtype": "float32"}
    made = shape_of(config).kv_cache("auto", Scheduling(8, 1024, False), 16, 2)
    assert made.block_tokens == 528


def test_layers_that_read_the_cache_of_others_keep_none():
    config = families.GEMMA_2_9B | {"num_kv_shared_layers": 2}
    assert shape_of(config).kv_bytes_per_token("auto") == 20 * 8192


@given(
    name=st.sampled_from([name for name, _ in PARAMETERS]),
    size_bytes=st.integers(0, 16 * GIB),
    tokens=st.integers(0, 200_000),
    block_tokens=st.sampled_from([16, 128]),
    num_seqs=st.integers(1, 16),
)
def test_tokens_that_fit_do_fit_and_one_more_block_does_not(
    name, size_bytes, tokens, block_tokens, num_seqs
):
    made = cache(name, Scheduling(num_seqs, 2048, True), block_tokens)
    assert made.num_tokens(made.size_bytes(tokens)) >= tokens
    found = made.num_tokens(size_bytes)
    if found:
        assert made.size_bytes(found) <= size_bytes
        if name != "MISTRAL_7B_V01":  # all of its layers have windows, so it has no such end
            assert made.size_bytes(found + made.block_tokens) > size_bytes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer_types": ["mamba"] * 32}, "mamba"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, and there are 32"),
        ({"layer_types": ["linear_attention"] * 32}, "no layer has attention"),
        ({"full_attention_interval": 4, "linear_num_key_heads": None}, "linear_"),
    ],
)
def test_layers_that_are_not_known_are_told(changes, told):
    with pytest.raises(UnknownShapeError, match=told):
        shape_of(families.LLAMA_3_1_8B | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "cohere2"}, "'cohere2' cannot be counted"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "'aqlm' is not known"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}},
            "'modelopt w4a8_awq' is not known",
        ),
        ({"vision_config": {"depth": 1}}, "the vision tower of 'llama' is not known"),
    ],
)
def test_tensors_that_are_not_known_leave_the_kv_cache_known(changes, told):
    """A checkpoint that is here is planned with: the headers of its files say the weights."""
    shape = shape_of(families.LLAMA_3_1_8B | changes)
    assert shape.kv_bytes_per_token("fp8") == 65_536
    with pytest.raises(UnknownShapeError, match=told):
        shape.weights_bytes()


def test_hybrid_fits_a_card_that_full_attention_in_all_layers_would_not():
    """gpt-oss-20b, whose own context is 131,072 tokens."""
    engine = EngineSettings(
        max_model_len=32768,
        max_num_seqs=4,
        max_num_batched_tokens=1024,
        gpu_memory_utilization=0.94,
    )

    def fits(config: dict[str, object]) -> bool:
        shape = shape_of(config)
        made = plan(
            "m",
            "",
            shape,
            engine,
            LINUX,
            weights_bytes=shape.weights_bytes(),
            overhead=Overhead(int(0.7 * GIB), "estimate"),
        )
        return made.fits

    assert fits(families.GPT_OSS_20B)
    assert not fits(families.GPT_OSS_20B | {"layer_types": ["full_attention"] * 24})
