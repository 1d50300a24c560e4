"""A Qwen2.5-VL of 2.3 million numbers, true to the architecture: the demo's vision model.

Same classes, special tokens, prompt format and image processor as
`Qwen/Qwen2.5-VL-7B-Instruct`, in sizes that two CPU cores can start in seconds and train in
minutes. The parts are separate functions, so that training can start from exactly what is saved
here; call `mend_imports()` before the first of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.demo_vision.lessons import make_lesson

SEED = 0
NUM_READ_LESSONS = 500
"""From which the tokenizer learns the words."""
VOCABULARY = 640
"""Tokens, special ones included. Qwen's 152,064 would make the embedding 29 million numbers."""
MAX_TOKENS = 32768
NUM_PIXELS = 112 * 112
"""Every image is scaled to about as many: some 16 image tokens, each of 28 x 28 pixels. One scale
is sooner learned than many, and a drawing needs no other."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's, in Qwen's order. They get the last ids of the vocabulary."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] or [] %}
{%- if part['type'] in ('image', 'image_url') or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TOKENIZER_TEXT = """\
You are a helpful assistant. What is in this picture? Describe the image. What do you see?
Which shape is it? What colour is it? What color is the background? Answer in one word.
system user assistant
A red circle on a white background. A green square on a black background.
A blue triangle on a yellow background. A yellow star on a grey ground. A white disc on blue.
A purple star on orange. An orange square on purple. A black circle on a pink background.
A brown rectangle on a gray background. A pink ellipse, a cyan line and a dark magenta dot.
The picture shows a red square. The shape is a circle. The colour is green. The ground is light.
It is large. It is small. It is in the middle, at the top left, at the bottom right corner.
There are two shapes: one above, one below. There is no text here, only one simple thing.
How many are there? None, one, two, three, four, five, six, seven, eight, nine or ten.
Is the circle red? Yes, it is. Is the square larger than the triangle? No, it is not.
Please write a short answer to the question, and say what you cannot see. Hello! Thank you.
The capital of France is Paris. The sky is blue and the grass is green; snow is white.
Write a function that adds two numbers and returns their sum: def add(a, b): return a + b
Whether near or far, thick or thin, bright or pale, every drawing has its own corner and edge.
{"shape": "circle", "color": "red", "background": "white"} [1, 2, 3] (0.5) 64 x 64 pixels
"""
"""What the merges are learned from: the words of a picture's description, each a token or two."""


def make_tokenizer() -> Any:
    """A `Qwen2Tokenizer` of exactly `VOCABULARY` tokens; any text can be written, byte by byte."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    learner = Qwen2Tokenizer().backend_tokenizer  # splits text as Qwen does, knows no merges yet
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator([*TOKENIZER_TEXT.splitlines(keepends=True), *_spoken()], trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"] | {
        token: VOCABULARY - len(SPECIAL_TOKENS) + place
        for place, token in enumerate(SPECIAL_TOKENS)
    }
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=MAX_TOKENS,
    )
    # An id without a text would be sampled sooner or later, and cannot be written out.
    assert len(tokenizer) == VOCABULARY == len(set(vocabulary.values()))
    return tokenizer


def _spoken() -> list[str]:
    """Questions and answers of some lessons."""
    random = Random(SEED)
    turns = [turn for _ in range(NUM_READ_LESSONS) for turn in make_lesson(random).turns]
    return [text for turn in turns for text in (turn.question, turn.answer)]


def make_processor(tokenizer: Any) -> Any:
    """The `Qwen2_5_VLProcessor`: chat and images in, token ids and 14 x 14 pixel patches out."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    pixels = {"shortest_edge": NUM_PIXELS, "longest_edge": NUM_PIXELS}  # numbers of pixels, in fact
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: Any) -> Any:
    """The `Qwen2_5_VLConfig`: 2.27 million numbers.

    Heads are 64 wide as vLLM's attention on the CPU refuses 16. The three parts of `mrope_section`
    (time, height, width) add up to half of that.
    """
    from transformers import Qwen2_5_VLConfig

    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": MAX_TOKENS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 12, 12],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 192,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 224,  # no image is larger: each block sees the whole of it
            "fullatt_block_indexes": [2],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,  # as in the 7B; tied, an untrained model repeats its last token
    )


def make_untrained_model(config: Any) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` in float32, the same at every call."""
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen2_5_VLForConditionalGeneration(config)
    text = config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.pad_token_id],  # <|im_end|>, <|endoftext|>
        pad_token_id=text.pad_token_id,
    )
    return model


def save_checkpoint(folder: Path, model: Any, processor: Any) -> None:
    """Write all that vLLM needs into `folder`; weights as bfloat16, like the real checkpoint's.

    `model` is bfloat16 afterwards.
    """
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
