"""The numbers of public models' `config.json`, as they stand on the Hugging Face hub."""

from typing import Any

_PLAIN = {"torch_dtype": "bfloat16", "tie_word_embeddings": False}


def _config(
    model_type: str,
    layers: int,
    hidden: int,
    inner: int,
    heads: tuple[int, int],
    vocab: int,
    context: int,
    **more: Any,
) -> dict[str, Any]:
    """`heads`: of the query, of key and value."""
    return {
        **_PLAIN,
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}
FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}

QWEN2_5_7B = _config(
    "qwen2",
    28,
    3584,
    18944,
    (28, 4),
    152064,
    32768,
    sliding_window=131072,
    use_sliding_window=False,
    max_window_layers=28,
)
QWEN3_0_6B = _config(
    "qwen3", 28, 1024, 3072, (16, 8), 151936, 40960, head_dim=128, tie_word_embeddings=True
)
QWEN3_8B = _config("qwen3", 36, 4096, 12288, (32, 8), 151936, 40960, head_dim=128)
QWEN3_14B = _config("qwen3", 40, 5120, 17408, (40, 8), 151936, 40960, head_dim=128)
QWEN3_30B_A3B = _config(
    "qwen3_moe",
    48,
    2048,
    6144,
    (32, 4),
    151936,
    40960,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    sliding_window=None,
    use_sliding_window=False,
)
LLAMA_3_1_8B = _config("llama", 32, 4096, 14336, (32, 8), 128256, 131072)
MISTRAL_7B_V01 = _config("mistral", 32, 4096, 14336, (32, 8), 32000, 32768, sliding_window=4096)
MISTRAL_7B_V03 = _config("mistral", 32, 4096, 14336, (32, 8), 32768, 32768, sliding_window=None)
PHI_4 = _config("phi3", 40, 5120, 17920, (40, 10), 100352, 16384, sliding_window=None)
MIXTRAL_8X7B = _config(
    "mixtral", 32, 4096, 14336, (32, 8), 32000, 32768, num_local_experts=8, sliding_window=None
)
GEMMA_2_9B = _config(
    "gemma2", 42, 3584, 14336, (16, 8), 256000, 8192, head_dim=256, sliding_window=4096
)
del GEMMA_2_9B["tie_word_embeddings"]  # the hub's file leaves it out: it is true of the family
GEMMA_3_12B = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
GPT_OSS_20B = _config(
    "gpt_oss",
    24,
    2880,
    2880,
    (64, 8),
    201088,
    131072,
    head_dim=64,
    num_local_experts=32,
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
    quantization_config=MXFP4,
)
DEEPSEEK_V2_LITE = _config(
    "deepseek_v2",
    27,
    2048,
    10944,
    (16, 16),
    102400,
    163840,
    kv_lora_rank=512,
    q_lora_rank=None,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
    n_routed_experts=64,
    n_shared_experts=2,
    moe_intermediate_size=1408,
    first_k_dense_replace=1,
)
QWEN3_NEXT_80B = _config(
    "qwen3_next",
    48,
    2048,
    5120,
    (16, 2),
    151936,
    262144,
    head_dim=256,
    full_attention_interval=4,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_value_head_dim=128,
    num_experts=512,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    decoder_sparse_step=1,
    mlp_only_layers=[],
)
# As transformers' own configuration of the 9B describes it.
QWEN3_5_TEXT = _config("qwen3_5_text", 32, 4096, 12288, (16, 4), 248320, 262144)
