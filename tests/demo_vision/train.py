"""Teaches the demo's vision model to see, in two parts, and examines it.

    PYTHONPATH=deployments/engine/site python -m tests.demo_vision.train FOLDER

This made `deployments/checkpoints/demo_data/qwen2.5-vl-shapes`, which is kept so that a
first start need not train. To make it anew, name that folder.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.demo_vision.classroom import (
    FINE,
    NOT_AN_ANSWER,
    Classroom,
    cells,
    picture_size,
    silhouettes,
)
from tests.demo_vision.lessons import (
    CHAT,
    Lesson,
    Turn,
    ask_all,
    ask_colour,
    ask_count,
    ask_ground,
    ask_of_two,
    ask_shape,
    ask_whether,
    make_lesson,
)
from tests.demo_vision.model import (
    SEED,
    make_config,
    make_processor,
    make_tokenizer,
    make_untrained_model,
    save_checkpoint,
)
from tests.demo_vision.pictures import SHADES, SHAPES, Scene, draw, imagine

VISION_STEPS, VISION_BATCH, VISION_RATE = 1400, 24, 1.5e-3
ANSWER_STEPS, ANSWER_BATCH, ANSWER_RATE = 1300, 12, 2e-3
"""Steps of each part, pictures or lessons a step, and the highest learning rate."""
NUM_LOUD = 48
"""Principal components of patches that all begin about as loud."""

NUM_EXAM_LESSONS = 200
EXAM_SEED = 2**32
"""No training starts from it."""
SUBJECTS: dict[str, Callable[[Scene, Random], Turn]] = {
    "colour": lambda scene, random: ask_colour(random.choice(scene.groups), scene, random),
    "shape": lambda scene, random: ask_shape(random.choice(scene.groups), scene, random),
    "count": ask_count,
    "ground": ask_ground,
    "yes or no": ask_whether,
    "description": ask_all,
}

Report = Callable[[int, int, float], None]
"""Called with a step, the number of steps, and the step's loss."""


def learn_to_see(
    model: Any, classroom: Classroom, steps: int, random: Random, report: Report
) -> None:
    """Teach the vision tower alone: what lies under each image token.

    A head of one layer, thrown away afterwards, reads from each token the shape that covers its
    middle, that shape's colour (or the ground's), whether a shape has its centre in it, and the
    silhouette. The words of answers alone say too little of where things are.
    """
    tower = model.model.visual
    look_nearby(tower)
    whiten(tower, _shown(classroom, random))
    parts = [len(SHAPES) + 1, len(SHADES), 1, FINE**2]
    head = torch.nn.Linear(tower.config.out_hidden_size, sum(parts))
    teacher = Teacher([*tower.parameters(), *head.parameters()], VISION_RATE, steps)
    for step in range(steps):
        scenes = [imagine(random) for _ in range(VISION_BATCH)]
        drawings = [draw(scene, random, picture_size(random)) for scene in scenes]
        patches, grids = classroom.look([drawing.picture for drawing in drawings])
        shown = list(zip(scenes, drawings, (grids // 2).tolist(), strict=True))
        truth = torch.cat([cells(scene, drawing, grid) for scene, drawing, grid in shown])
        outlines = torch.cat([silhouettes(drawing, grid) for _, drawing, grid in shown])
        with torch.autocast("cpu", torch.bfloat16):
            seen = head(tower(patches, grids).pooler_output)
        loss = _seeing_loss(seen.float().split(parts, dim=-1), truth, outlines)
        teacher.correct(loss)
        report(step, steps, loss.item())


def _shown(classroom: Classroom, random: Random) -> torch.Tensor:
    drawings = [
        draw(imagine(random), random, picture_size(random)) for _ in range(8 * VISION_BATCH)
    ]
    return classroom.look([drawing.picture for drawing in drawings])[0]


def whiten(tower: Any, patches: torch.Tensor) -> None:
    """Begin with the principal components of `patches`, each as loud as the others.

    Plain colour is far louder than the edges that make a shape, and would be all that is learned
    from for a long time. The faintest components, noise of scaling, stay faint.
    """
    weight = tower.patch_embed.proj.weight
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        values, vectors = values.flip(0)[: len(weight)], vectors.flip(1)[:, : len(weight)]
        scaled = vectors / (values + values[NUM_LOUD]).sqrt() * 0.5
        weight.copy_(scaled.T.reshape(weight.shape))


def look_nearby(tower: Any) -> None:
    """Let each head of all blocks but the last begin by looking at one diagonal neighbour.

    A transformer takes many thousand pictures to find out that what lies together belongs
    together. The positions turn queries and keys like the hands of clocks, so constant ones that
    differ by an angle are most alike at one distance: written into the biases, that is where a
    head looks first. Only the two fastest clocks of each axis tell neighbours apart.
    """
    strength = 4.0
    heads = tower.config.num_heads
    with torch.no_grad():
        for block in tower.blocks[:-1]:
            query, key, _ = block.attn.qkv.bias.view(3, heads, -1)
            half = query.shape[1] // 2
            for head in range(heads):
                for axis, way in enumerate((head % 2 * 2 - 1, head // 2 % 2 * 2 - 1)):
                    for clock in range(2):
                        place = axis * half // 2 + clock
                        angle = way * 10000 ** (-2 * clock / half)
                        key[head, place] = strength
                        query[head, place] = strength * math.cos(angle)
                        query[head, place + half] = strength * math.sin(angle)


def _seeing_loss(
    seen: Sequence[torch.Tensor], truth: torch.Tensor, outlines: torch.Tensor
) -> torch.Tensor:
    """The sum of four losses; tokens of shapes weigh as much as the many more of the ground."""
    each = torch.nn.functional.cross_entropy
    yes_or_no = torch.nn.functional.binary_cross_entropy_with_logits
    shapes, colours, centres, squares = seen
    has_centre = truth[:, 2].float()
    losses = (
        each(shapes, truth[:, 0], reduction="none")
        + each(colours, truth[:, 1], reduction="none")
        + yes_or_no(centres[:, 0], has_centre, reduction="none")
    )
    is_shape = truth[:, 0] > 0
    weights = torch.where(is_shape, 0.5 / is_shape.sum(), 0.5 / (~is_shape).sum())
    return (losses * weights).sum() + yes_or_no(squares, outlines)


def learn_to_answer(
    model: Any, classroom: Classroom, steps: int, random: Random, report: Report
) -> None:
    """Teach the language model the lessons' answers; the vision tower stays as it is."""
    model.model.visual.requires_grad_(False)
    learner = [parameter for parameter in model.parameters() if parameter.requires_grad]
    teacher = Teacher(learner, ANSWER_RATE, steps)
    batches: list[list[Lesson]] = []
    for step in range(steps):
        batches = batches or _batches(classroom, random)
        inputs = classroom.batch(batches.pop(), random)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        teacher.correct(loss)
        report(step, steps, loss.item())


def _batches(classroom: Classroom, random: Random) -> list[list[Lesson]]:
    """Eight batches of lessons that are about as long: little has to be padded."""
    lessons = sorted((make_lesson(random) for _ in range(8 * ANSWER_BATCH)), key=classroom.length)
    batches = [
        lessons[start : start + ANSWER_BATCH] for start in range(0, len(lessons), ANSWER_BATCH)
    ]
    random.shuffle(batches)
    return batches


class Teacher:
    """AdamW; its rate rises over the first tenth of the steps, then falls to nothing."""

    def __init__(self, parameters: Sequence[Any], rate: float, steps: int) -> None:
        self._parameters = parameters
        self._adam = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._adam, rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
        )

    def correct(self, loss: torch.Tensor) -> None:
        """One step against the loss."""
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adam.step()
        self._schedule.step()


def share_right(
    model: Any, classroom: Classroom, lessons: Sequence[Lesson], random: Random
) -> float:
    """The share of lessons whose answers come out right, word for word, without sampling.

    Where the likeliest token after each true beginning is the true one, the greedy answer is true.
    """
    num_right = 0
    with torch.no_grad():
        for start in range(0, len(lessons), ANSWER_BATCH):
            inputs = classroom.batch(lessons[start : start + ANSWER_BATCH], random)
            truth = inputs.pop("labels")[:, 1:]
            said = model(**inputs).logits[:, :-1].argmax(-1)
            num_right += int(((said == truth) | (truth == NOT_AN_ANSWER)).all(-1).sum())
    return num_right / len(lessons)


def exam(model: Any, classroom: Classroom, num_lessons: int) -> dict[str, float]:
    """The share of right answers to each kind of question, about pictures never shown before."""
    random = Random(EXAM_SEED)
    papers = {}
    for subject, ask in SUBJECTS.items():
        scenes = [imagine(random) for _ in range(num_lessons)]
        papers[subject] = [Lesson((scene,), (ask(scene, random),)) for scene in scenes]
    pairs = [(imagine(random), imagine(random)) for _ in range(num_lessons)]
    papers["two pictures"] = [Lesson(pair, (ask_of_two(pair, random),)) for pair in pairs]
    papers["no picture"] = [Lesson((), (Turn(*entry),)) for entry in CHAT]
    return {
        subject: share_right(model, classroom, lessons, random)
        for subject, lessons in papers.items()
    }


def beginning() -> tuple[Any, Any]:
    """The processor, and the model before its first lesson."""
    tokenizer = make_tokenizer()
    model = make_untrained_model(make_config(tokenizer))
    # Of many short sequences, PyTorch's own attention spends a third of a step going backward.
    model.set_attn_implementation("eager")
    return make_processor(tokenizer), model


def train(folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Train from nothing, write the checkpoint into `folder`, and return its marks."""
    torch.manual_seed(SEED)
    processor, model = beginning()
    classroom = Classroom(processor)
    first, second = Random(SEED + 1), Random(SEED + 2)
    learn_to_see(model, classroom, VISION_STEPS, first, Progress("seeing", say))
    learn_to_answer(model, classroom, ANSWER_STEPS, second, Progress("answering", say))
    save_checkpoint(folder, model, processor)
    return exam(model.float(), classroom, NUM_EXAM_LESSONS)  # of the weights as saved


class Progress:
    """Says the mean loss of every 50 steps."""

    def __init__(self, subject: str, say: Callable[[str], None]) -> None:
        self._subject, self._say = subject, say
        self._losses: list[float] = []
        self._started_s = time.monotonic()

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self._losses.append(loss)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = sum(self._losses) / len(self._losses)
            passed_s = time.monotonic() - self._started_s
            self._say(
                f"{self._subject}: step {step + 1} of {steps}, {passed_s:.0f} s, loss {mean:.3f}"
            )
            self._losses = []


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the marks of the exam."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo_vision.train",
        description="Train the demo's vision model on drawn pictures.",
    )
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    marks = train(chosen.folder, lambda line: print(line, flush=True))
    for subject, mark in marks.items():
        print(f"{subject}: {mark:.1%} right")


if __name__ == "__main__":
    main()
