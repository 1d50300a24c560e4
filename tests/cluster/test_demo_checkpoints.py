"""The demo checkpoints load with transformers, in a process set up like the engine's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deployments.engine.site
from deployments.checkpoints.demo import model_folder
from tests.conftest import DEMO_HOME

SITE = Path(deployments.engine.site.__file__).parent
ROOT = SITE.parent.parent
BUILD_TIMEOUT_S = 240
"""Both took 34 s on two idle cores."""


def run_in_engine_process(code: str, *arguments: str) -> Any:
    """Run `code` with the engine's import hook; what it prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        # Two threads wait for each other at each step, and for minutes where others have the cores.
        env=os.environ
        | {"PYTHONPATH": f"{SITE}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def build(*names: str, home: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "deployments.checkpoints.demo", "--home", str(home), *names],
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
    processed = run_in_engine_process(PROCESS_IMAGES, str(model_folder("qwen2.5-vl-shapes", home)))

    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert processed["prompt"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{image}{image}What shapes are these?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Patches are 14 pixels wide: 112 x 56 is scaled to 168 x 84, 3000 x 3000 to 112 x 112.
    assert processed["grids"] == [[1, 6, 12], [1, 8, 8]]
    assert processed["patches"] == [6 * 12 + 8 * 8, 3 * 2 * 14 * 14]
    assert processed["image_pads"] == 3 * 6 + 4 * 4
    assert processed["ends"] == ["<|im_end|>", "<|endoftext|>"]
    assert processed["tokens"] == 640


CLASSROOM = """
import json, sys
import torch
from random import Random
from transformers import AutoModelForImageTextToText, AutoProcessor
from tests.demo_vision import train as school
"""


EXAM = (
    CLASSROOM
    + """
processor = AutoProcessor.from_pretrained(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32)
print(json.dumps(school.exam(model, school.Classroom(processor), 64)))
"""
)


def test_the_kept_weights_answer_questions_about_pictures_never_shown(home: Path) -> None:
    """Word for word. A larger exam gave 84, 73 and 72 %; what is asked here leaves room for chance,
    with 64 pictures."""
    marks = run_in_engine_process(EXAM, str(model_folder("qwen2.5-vl-shapes", home)))

    assert marks["colour"] >= 0.7
    assert marks["ground"] >= 0.55
    assert marks["shape"] >= 0.55


WRITE = (
    CLASSROOM
    + """
from tests.demo_vision.lessons import Lesson, Turn
from tests.demo_vision.pictures import draw, imagine
processor = AutoProcessor.from_pretrained(sys.argv[1])
random = Random(1)
scenes = (imagine(random), imagine(random))
pictures = [draw(scene, random, (112, 112)).picture for scene in scenes]
turns = (Turn("What is this?", "It is a star."), Turn("What colour is it?", "It is red."))
written, labels = school.Classroom(processor).write(Lesson(scenes, turns), [16, 16])
chat = [
    {"role": "user", "content": [
        {"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "It is a star."},
    {"role": "user", "content": "What colour is it?"},
    {"role": "assistant", "content": "It is red."},
]
text = processor.apply_chat_template(chat, tokenize=False)
served = processor(text=[text], images=pictures, return_tensors="pt")["input_ids"][0].tolist()
answers = [token for token in labels if token != school.NOT_AN_ANSWER]
print(json.dumps({
    "same": written == served, "answers": processor.tokenizer.decode(answers)
}))
"""
)


def test_lessons_are_written_as_the_engine_writes_a_chat(home: Path) -> None:
    """Token for token; the answers with their ends are all that is learned."""
    lesson = run_in_engine_process(WRITE, str(model_folder("qwen2.5-vl-shapes", home)))

    assert lesson["same"]
    assert lesson["answers"] == "It is a star.<|im_end|>It is red.<|im_end|>"


LEARN = (
    CLASSROOM
    + """
losses = {"see": [], "answer": []}
torch.manual_seed(0)
processor, model = school.beginning()
room = school.Classroom(processor)
school.learn_to_see(model, room, 12, Random(0), lambda *at: losses["see"].append(at[2]))
school.learn_to_answer(model, room, 12, Random(0), lambda *at: losses["answer"].append(at[2]))
print(json.dumps(losses))
"""
)


def test_the_script_that_made_the_weights_still_teaches() -> None:
    """A few steps of both parts: the loss falls."""
    losses = run_in_engine_process(LEARN)

    for part in ("see", "answer"):
        assert sum(losses[part][-3:]) < 0.9 * sum(losses[part][:3])
