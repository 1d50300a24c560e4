"""The demo checkpoints load with transformers, in a process set up like the engine's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deployments.engine_site
from deployments.demo_models import MANIFEST, model_folder
from tests.conftest import DEMO_HOME

SITE = Path(deployments.engine_site.__file__).parent
ROOT = SITE.parent.parent
BUILD_TIMEOUT_S = 240
"""Both took 34 s on two idle cores."""


def run_in_engine_process(code: str, *arguments: str) -> Any:
    """Run `code` with the engine's import hook; what it prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(SITE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def build(*names: str, home: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "deployments.demo_models", "--home", str(home), *names],
        cwd=ROOT,
        timeout=BUILD_TIMEOUT_S,
        check=True,
    )


@pytest.fixture(scope="module")
def home() -> Path:
    """The machine's own cache, filled: building takes half a minute, once."""
    build(home=DEMO_HOME)
    return DEMO_HOME


LOAD_TEXT_MODEL = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
config = AutoConfig.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What is the capital of France?"}]
print(json.dumps({
    "prompt": tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
    "round_trip": tokenizer.decode(tokenizer("Où est Paris?")["input_ids"]),
    "architecture": config.architectures,
    "quantized": hasattr(config, "quantization_config"),
    "end": tokenizer.convert_ids_to_tokens(config.eos_token_id),
}))
"""


def test_smollm2_loads_with_its_tokenizer_and_chat_template(home: Path) -> None:
    loaded = run_in_engine_process(
        LOAD_TEXT_MODEL, str(model_folder("smollm2-135m-instruct", home))
    )

    assert loaded["prompt"].endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded["round_trip"] == "Où est Paris?"
    assert loaded["architecture"] == ["LlamaForCausalLM"]
    assert not loaded["quantized"]
    assert loaded["end"] == "<|im_end|>"


PROCESS_IMAGES = """
import json, sys
from PIL import Image
from transformers import AutoProcessor, GenerationConfig
processor = AutoProcessor.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": [
    {"type": "image"}, {"type": "image_url"}, {"type": "text", "text": "What shapes are these?"},
]}]
prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
images = [Image.new("RGB", (112, 56), "red"), Image.new("RGB", (3000, 3000), "blue")]
inputs = processor(text=[prompt], images=images, return_tensors="pt")
ids = inputs["input_ids"][0].tolist()
tokenizer = processor.tokenizer
ends = GenerationConfig.from_pretrained(sys.argv[1]).eos_token_id
print(json.dumps({
    "prompt": prompt,
    "image_pads": ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")),
    "grids": inputs["image_grid_thw"].tolist(),
    "patches": list(inputs["pixel_values"].shape),
    "ends": tokenizer.convert_ids_to_tokens(ends),
    "tokens": len(tokenizer),
}))
"""


def test_the_vision_processor_gives_one_pad_for_each_28_pixel_square(home: Path) -> None:
    processed = run_in_engine_process(PROCESS_IMAGES, str(model_folder("qwen2.5-vl-tiny", home)))

    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert processed["prompt"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{image}{image}What shapes are these?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Patches are 14 pixels wide: 112 x 56 keeps its size, 3000 x 3000 is scaled to 224 x 224.
    assert processed["grids"] == [[1, 4, 8], [1, 16, 16]]
    assert processed["patches"] == [4 * 8 + 16 * 16, 3 * 2 * 14 * 14]
    assert processed["image_pads"] == 2 * 4 + 8 * 8
    assert processed["ends"] == ["<|im_end|>", "<|endoftext|>"]
    assert processed["tokens"] == 640


def test_the_vision_model_is_the_same_wherever_it_is_built(tmp_path: Path) -> None:
    checkpoints = []
    for name in ("here", "there"):
        build("qwen2.5-vl-tiny", home=tmp_path / name)
        folder = model_folder("qwen2.5-vl-tiny", tmp_path / name)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert MANIFEST in files
        checkpoints.append(files)

    assert checkpoints[0] == checkpoints[1]
