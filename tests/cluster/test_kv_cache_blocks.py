"""The KV cache of a context is the one that vLLM asks for, to the byte, for layers of every kind.

vLLM refuses to start where its own figure does not fit, so the plan may not say less.
"""

import json
import subprocess
import sys

import pytest

from deployments.checkpoints.kv_cache import LayerKind, Scheduling
from deployments.checkpoints.shape import shape_of
from deployments.engine.process import base_environment
from tests.pure.checkpoints import families

pytestmark = pytest.mark.timeout(200)

NAMES = (
    "LLAMA_3_1_8B",
    "MISTRAL_7B_V01",
    "GEMMA_2_9B",
    "GEMMA_3_12B",
    "GPT_OSS_20B",
    "QWEN3_5_TEXT",
    "QWEN3_NEXT_80B",
)
CONTEXTS = (512, 8192, 32768)
STEP_TOKENS = 1024

# Reads layers, one in a line of JSON for each model, and prints what vLLM wants for each context.
ASK = """
import json, sys
from types import SimpleNamespace as Values
import torch
from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size as groups_of
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

def spec(layer):
    kind = layer.pop("kind")
    if kind == "linear":
        shapes, page = layer["shapes"], layer["page"]
        return MambaSpec(
            block_size=layer["block_size"],
            shapes=tuple(tuple(shape) for shape in shapes),
            dtypes=(torch.bfloat16, torch.bfloat16),
            page_size_padded=page,
            mamba_cache_mode="align",
        )
    if kind == "sliding":
        return SlidingWindowSpec(dtype=torch.bfloat16, dcp_sharded=False, **layer)
    return FullAttentionSpec(dtype=torch.bfloat16, **layer)

def wanted(groups, context, step_tokens):
    config = Values(
        model_config=Values(max_model_len=context),
        parallel_config=Values(decode_context_parallel_size=1),
        cache_config=Values(mamba_cache_mode="align"),
        max_in_flight_tokens=2 * step_tokens,
    )
    page = groups[0].kv_cache_spec.page_size_bytes
    block = max(len(group.layer_names) for group in groups) * page
    bytes_each = [group.kv_cache_spec.max_memory_usage_bytes(config) for group in groups]
    return sum(-(-size // page) for size in bytes_each) * block

asked = json.load(sys.stdin)
found = {}
for name, layers in asked["models"].items():
    groups = groups_of({f"layers.{i}": spec(layer) for i, layer in enumerate(layers)})
    found[name] = [wanted(groups, context, asked["step"]) for context in asked["contexts"]]
print(json.dumps(found))
"""


def layers_of(name: str, block_tokens: int) -> list[dict[str, object]]:
    """Each layer as vLLM's KV cache interface describes it."""
    shape = shape_of(getattr(families, name))
    heads = {"num_kv_heads": shape.num_kv_heads, "head_size": shape.head_dim}
    layers: list[dict[str, object]] = []
    for kind, number in shape.kinds:
        layer: dict[str, object] = {"kind": kind.value, "block_size": block_tokens}
        if kind is LayerKind.LINEAR and shape.linear:
            linear = shape.linear
            state = (linear.num_value_heads, linear.value_dim, linear.key_dim)
            layer["shapes"] = [(linear.conv_dim, linear.conv_kernel - 1), state]
            layer["page"] = block_tokens * 2 * shape.num_kv_heads * shape.head_dim * 2
        else:
            layer |= heads
        if kind is LayerKind.SLIDING:
            layer["sliding_window"] = shape.window_tokens
        layers += [dict(layer) for _ in range(number)]
    return layers


def test_kv_cache_of_a_context_is_vllms_own_figure():
    caches = {
        name: shape_of(getattr(families, name)).kv_cache(
            "auto", Scheduling(1, STEP_TOKENS, True), 16, 0
        )
        for name in NAMES
    }
    models = {name: layers_of(name, cache.block_tokens) for name, cache in caches.items()}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps({"models": models, "contexts": CONTEXTS, "step": STEP_TOKENS}),
        env=base_environment(),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        name: [cache.size_bytes(context) for context in CONTEXTS] for name, cache in caches.items()
    }
