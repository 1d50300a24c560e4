"""Lessons and drawings as numbers: what the demo's vision model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from PIL import Image

from tests.demo_vision.lessons import Lesson
from tests.demo_vision.model import NUM_PIXELS
from tests.demo_vision.pictures import SHADES, SHAPES, Drawing, Group, Scene, draw

COLOURS = list(SHADES)
NOT_AN_ANSWER = -100
"""The label of a token that the model is not to learn to say."""
FINE = 7
"""Squares across an image token in which a silhouette is told."""
USUAL_SIZE = (112, 112)
USUAL_TOKENS = 16
"""Image tokens of a picture of the usual size."""
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def picture_size(random: Random) -> tuple[int, int]:
    """Width and height of a picture: half are of the size the model sees, the others of any."""
    if random.random() < 0.5:
        return USUAL_SIZE
    pixels = random.uniform(0.4, 1.8) * NUM_PIXELS
    aspect = random.choice((1, 1, random.uniform(0.55, 1.8)))
    return round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)


class Classroom:
    """Writes lessons as the processor and the chat template would, and marks what is learned."""

    def __init__(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        self._images = processor.image_processor
        self._image_pad = self._tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text)["input_ids"]
        return self._known[text]

    def write(self, lesson: Lesson, image_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """A lesson's token ids and labels; `image_tokens` counts those of each picture."""
        ids = [*self._ids(SYSTEM), *self._ids("<|im_start|>user\n")]
        for num in image_tokens:
            ids += self._ids("<|vision_start|>") + [self._image_pad] * num
            ids += self._ids("<|vision_end|>")
        labels = [NOT_AN_ANSWER] * len(ids)
        for number, turn in enumerate(lesson.turns):
            before = "<|im_start|>user\n" if number else ""
            asked = self._ids(f"{before}{turn.question}<|im_end|>\n<|im_start|>assistant\n")
            answered = self._ids(f"{turn.answer}<|im_end|>")
            after = self._ids("\n")
            ids += asked + answered + after
            labels += [NOT_AN_ANSWER] * len(asked) + answered + [NOT_AN_ANSWER] * len(after)
        return ids, labels

    def length(self, lesson: Lesson) -> int:
        """About how many tokens the lesson has."""
        return len(self.write(lesson, [USUAL_TOKENS] * len(lesson.scenes))[0])

    def look(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """All pictures' patches, and each one's grid of patches: time (1), rows, columns."""
        inputs = self._images(images=list(pictures), return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def batch(self, lessons: Sequence[Lesson], random: Random) -> dict[str, torch.Tensor]:
        """What the model's `forward` takes, labels included; the pictures are drawn here."""
        pictures = [
            draw(scene, random, picture_size(random)).picture
            for lesson in lessons
            for scene in lesson.scenes
        ]
        inputs: dict[str, torch.Tensor] = {}
        image_tokens: list[int] = []
        if pictures:
            inputs["pixel_values"], grids = self.look(pictures)
            inputs["image_grid_thw"] = grids
            image_tokens = (grids.prod(-1) // 4).tolist()
        written = []
        for lesson in lessons:
            written.append(self.write(lesson, image_tokens[: len(lesson.scenes)]))
            image_tokens = image_tokens[len(lesson.scenes) :]
        ids = _padded([ids for ids, _ in written], self._tokenizer.pad_token_id)
        lengths = torch.tensor([len(ids) for ids, _ in written])
        return inputs | {
            "input_ids": ids,
            "labels": _padded([labels for _, labels in written], NOT_AN_ANSWER),
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "mm_token_type_ids": (ids == self._image_pad).int(),
        }


def _padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def cells(scene: Scene, drawing: Drawing, grid: Sequence[int]) -> torch.Tensor:
    """What lies under each image token: (rows x columns, 3) of shape, colour, has a centre.

    Shape 0 is the ground. `grid` counts image tokens: time (1), rows, columns.
    """
    _, rows, columns = grid
    truth = torch.zeros(rows, columns, 3, dtype=torch.long)
    truth[..., 1] = COLOURS.index(scene.ground)
    ys = (torch.arange(rows)[:, None] + 0.5) / rows
    xs = (torch.arange(columns)[None] + 0.5) / columns
    for spot in drawing.spots:
        far = ((xs - spot.x) / spot.radius_x) ** 2 + ((ys - spot.y) / spot.radius_y) ** 2
        truth[far < 0.6, :2] = _what(spot.group)
    for spot in drawing.spots:  # a middle is its own shape's, however near another one lies
        middle = truth[int(spot.y * rows), int(spot.x * columns)]
        middle[:2], middle[2] = _what(spot.group), 1
    return truth.flatten(0, 1)


def _what(group: Group) -> torch.Tensor:
    return torch.tensor([SHAPES.index(group.shape) + 1, COLOURS.index(group.colour)])


def silhouettes(drawing: Drawing, grid: Sequence[int]) -> torch.Tensor:
    """How much of each of FINE x FINE squares a shape covers: (rows x columns, FINE²).

    `grid` counts image tokens: time (1), rows, columns.
    """
    _, rows, columns = grid
    small = drawing.silhouette.resize((columns * FINE, rows * FINE), Image.Resampling.BOX)
    light = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8) / 255
    return light.view(rows, FINE, columns, FINE).transpose(1, 2).reshape(-1, FINE**2)
