"""The catalogue: model files that are served once they are copied into configs/models."""

import shutil

import pytest

from deployments.checkpoints.shape import shape_of
from deployments.memory.plan import CUDA_RESERVED_BYTES, RTX_5080_BYTES, Room
from deployments.memory.room import plan_on_paper
from deployments.settings import PROJECT, AppArgs, ModelSpec, load_settings
from tests.pure.checkpoints import families

FOLDER = PROJECT / "configs" / "catalogue"
LINUX = Room("cuda", RTX_5080_BYTES - CUDA_RESERVED_BYTES)
AWQ = {"quantization_config": families.AWQ}

# The checkpoint's config, and the bytes of its weights where they cannot be counted: Ministral's
# linear layers in FP8, embeddings and vision tower in bfloat16.
SHAPES = {
    "qwen3-14b": (families.QWEN3_14B | AWQ, None),
    "qwen3-8b": (families.QWEN3_8B | AWQ, None),
    "gpt-oss-20b": (families.GPT_OSS_20B, None),
    "gemma-3-12b": (families.GEMMA_3_12B | AWQ, None),
    "ministral-3-8b": (families.MINISTRAL_3_8B, 10_400_000_000),
    "llama-3.1-8b": (families.LLAMA_3_1_8B | AWQ, None),
    "qwen3-embedding-0.6b": (families.QWEN3_0_6B, None),
    "qwen2.5-coder-14b": (families.QWEN2_5_14B | AWQ, None),
}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """All of them beside the shipped ones, as after a copy."""
    configs = shutil.copytree(PROJECT / "configs", tmp_path_factory.mktemp("c") / "configs")
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, configs / "models")
    args = AppArgs(profile="rtx5080", config_dir=str(configs))
    return dict(load_settings(args, has_gpu=False).models)


def test_catalogue_is_what_is_tested_here():
    assert {path.stem for path in FOLDER.glob("*")} == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_model_of_the_catalogue_fits_the_card(specs, name, tmp_path):
    """With the whole context that its file names, and nothing else on the card."""
    config, weights_bytes = SHAPES[name]
    spec = specs[name]
    made = plan_on_paper(spec, shape_of(config), LINUX, tmp_path, weights_bytes)
    assert made.fits, made.reason
    assert made.context_tokens == spec.engine.max_model_len


@pytest.mark.parametrize("name", SHAPES)
def test_file_says_that_it_is_untried(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# Untried on the card")
