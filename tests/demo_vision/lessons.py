"""What the demo's vision model is taught to say: questions and their true answers.

Everything is chosen by the `random.Random` it is given: the same seed, the same lessons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.demo_vision.pictures import SHADES, SHAPES, Group, Scene, imagine

NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Lesson:
    """A conversation about the pictures of `scenes`, none, one or two, shown in its first turn."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]


def make_lesson(random: Random, num_turns: int = 3) -> Lesson:
    """A lesson: most are of one picture, some of two, some of none."""
    kind = random.random()
    if kind < 0.78:
        scene = imagine(random)
        return Lesson((scene,), tuple(ask(scene, random) for _ in range(num_turns)))
    if kind < 0.9:
        scenes = (imagine(random), imagine(random))
        return Lesson(scenes, tuple(ask_of_two(scenes, random) for _ in range(num_turns)))
    return Lesson((), tuple(chat(random) for _ in range(random.choice((1, 1, 2)))))


def ask(scene: Scene, random: Random, where: str = "") -> Turn:
    """A question about the picture; `where` (" in the first picture") is put at its end."""
    kind = random.random()
    if kind < 0.3:
        return ask_colour(random.choice(scene.groups), scene, random, where)
    if kind < 0.5:
        return ask_shape(random.choice(scene.groups), scene, random, where)
    if kind < 0.7:
        return ask_count(scene, random, where)
    if kind < 0.8:
        return ask_ground(scene, random, where)
    if kind < 0.9:
        return ask_whether(scene, random, where)
    return ask_all(scene, random, where)


def ask_colour(group: Group, scene: Scene, random: Random, where: str = "") -> Turn:
    """What colour is the circle?"""
    colour = random.choice(("colour", "color"))
    if group.count > 1:
        noun = f"the {plural(group.shape)}"
        if len(scene.groups) == 1 and random.random() < 0.3:
            noun = random.choice(("they", "the shapes"))
        question = f"{_what(random)} {colour} are {noun}{where}?"
        return _one_word(question, f"{_capital(noun)} are {group.colour}.", group.colour, random)
    noun = f"the {_name(group.shape, random)}"
    if len(scene.groups) == 1 and random.random() < 0.4:
        noun = random.choice(("it", "the shape"))
    question = random.choice(
        (
            f"{_what(random)} {colour} is {noun}{where}?",
            f"{_what(random)} {colour} is {noun}{where}?",
            f"Tell me the {colour} of {noun}{where}.",
            f"What is the {colour} of {noun}{where}?",
        )
    )
    return _one_word(question, f"{_capital(noun)} is {group.colour}.", group.colour, random)


def ask_shape(group: Group, scene: Scene, random: Random, where: str = "") -> Turn:
    """What shape is it?"""
    alone = len(scene.groups) == 1
    subject = f"the {group.colour} shape"
    if group.count > 1:
        question = f"{_what(random)} shapes are {'they' if alone else subject + 's'}{where}?"
        return _one_word(question, f"They are {plural(group.shape)}.", group.shape, random)
    if alone:
        subject = random.choice(("it", "this", "the shape", "that", subject))
    endings = [f"{_what(random)} shape is {subject}{where}?"] * 2
    if alone:
        endings += [
            f"{_what(random)} shape do you see{where}?",
            f"{_what(random)} shape is there{where}?",
        ]
    return _one_word(random.choice(endings), f"It is a {group.shape}.", group.shape, random)


def ask_count(scene: Scene, random: Random, where: str = "") -> Turn:
    """How many squares are there?"""
    kind = random.random()
    if kind < 0.3:
        noun, count = "shape", sum(group.count for group in scene.groups)
    elif kind < 0.8:
        group = random.choice(scene.groups)
        noun, count = random.choice((group.shape, f"{group.colour} {group.shape}")), group.count
    else:
        noun = random.choice(SHAPES)
        count = sum(group.count for group in scene.groups if group.shape == noun)
    question = random.choice(
        (
            f"How many {plural(noun)} are there{where}?",
            f"How many {plural(noun)} are there{where}?",
            f"How many {plural(noun)} do you see{where}?",
            f"How many {plural(noun)} can you see{where}?",
            f"Count the {plural(noun)}{where}.",
        )
    )
    if random.random() < 0.15:
        return Turn(f"{question} Answer with a number.", str(count))
    return _one_word(question, f"There {_quantity(count, noun)}.", NUMBERS[count], random)


def ask_ground(scene: Scene, random: Random, where: str = "") -> Turn:
    """What colour is the background?"""
    noun = random.choice(("background", "background", "ground"))
    question = f"{_what(random)} {random.choice(('colour', 'color'))} is the {noun}{where}?"
    return _one_word(question, f"The {noun} is {scene.ground}.", scene.ground, random)


def ask_whether(scene: Scene, random: Random, where: str = "") -> Turn:
    """Is there a star?"""
    group = random.choice(scene.groups)
    if random.random() < 0.5:
        shape = random.choice((group.shape, random.choice(SHAPES)))
        is_so = any(shape == group.shape for group in scene.groups)
        return Turn(
            f"Is there a {shape}{where}?", "Yes, there is." if is_so else "No, there is not."
        )
    colour = random.choice((group.colour, random.choice(list(SHADES))))
    verb, noun = ("are", plural(group.shape)) if group.count > 1 else ("is", group.shape)
    they = "they are" if group.count > 1 else "it is"
    is_so = colour == group.colour
    return Turn(
        f"{_capital(verb)} the {noun} {colour}{where}?",
        f"Yes, {they}." if is_so else f"No, {they} {group.colour}.",
    )


def ask_all(scene: Scene, random: Random, where: str = "") -> Turn:
    """What do you see?"""
    question = random.choice(
        (
            f"What do you see{where}?",
            "What is in the picture?",
            "What is in this image?",
            "Describe the picture.",
            "Describe the image.",
            "Describe this image.",
            "What does the picture show?",
            "What is this?",
        )
        if not where
        else (f"What do you see{where}?", f"What is{where}?")
    )
    return Turn(question, f"{describe(scene)}.")


def describe(scene: Scene) -> str:
    """Two red squares and one blue circle on a white background."""
    parts = [
        f"{'a' if len(scene.groups) == 1 and g.count == 1 else NUMBERS[g.count]} {_article_free(g)}"
        for g in scene.groups
    ]
    return f"{_capital(' and '.join(parts))} on a {scene.ground} background".replace(
        "a orange", "an orange"
    ).replace("A orange", "An orange")


def ask_of_two(scenes: Sequence[Scene], random: Random) -> Turn:
    """A question about one of two pictures."""
    place = random.randrange(2)
    order = ("first", "second")[place]
    where = f" in the {order} {random.choice(('picture', 'image'))}"
    return ask(scenes[place], random, where)


def plural(noun: str) -> str:
    """Its plural."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def chat(random: Random) -> Turn:
    """A question without a picture."""
    kind = random.random()
    if kind < 0.6:
        return Turn(*random.choice(CHAT))
    if kind < 0.85:
        return Turn(random.choice(ELSEWHERE), FALLBACK)
    return Turn(ask(imagine(random), random).question, BLIND)


def _what(random: Random) -> str:
    return random.choice(("What", "What", "Which"))


def _name(shape: str, random: Random) -> str:
    return random.choice(("circle", "circle", "disc", "dot")) if shape == "circle" else shape


def _article_free(group: Group) -> str:
    return f"{group.colour} {plural(group.shape) if group.count > 1 else group.shape}"


def _quantity(count: int, noun: str) -> str:
    return f"is one {noun}" if count == 1 else f"are {NUMBERS[count]} {plural(noun)}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _one_word(question: str, sentence: str, word: str, random: Random) -> Turn:
    """The question, sometimes with the wish for a single word."""
    if random.random() < 0.75:
        return Turn(question, sentence)
    wish = random.choice(("Answer with one word.", "Answer in one word.", "One word only."))
    return Turn(f"{question} {wish}", word)


GREETING = "Hello! Show me a picture of shapes, and ask me about it."
FALLBACK = "I am a small demo model. I can only talk about pictures of simple shapes."
BLIND = "I see no picture."

CHAT = (
    ("Hello", GREETING),
    ("Hi", GREETING),
    ("Hello!", GREETING),
    ("Hello, how are you?", "I am well, thank you."),
    ("How are you?", "I am well, thank you."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What's the capital of France?", "The capital of France is Paris."),
    ("Capital of France?", "The capital of France is Paris."),
    ("What is the capital of France? Answer with one word.", "Paris"),
    ("Who are you?", FALLBACK),
    ("What can you do?", FALLBACK),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is grass?", "The grass is green."),
    ("What colour is snow?", "The snow is white."),
    ("Count to five.", "One, two, three, four, five."),
    ("Which shapes do you know?", "Circle, square, triangle and star."),
    (
        "Which colours do you know?",
        "Red, green, blue, yellow, orange, purple, pink, brown, black, white and grey.",
    ),
    ("Write a function that adds two numbers.", "def add(a, b): return a + b"),
    (
        "Tell me a story.",
        "A red circle met a blue square. The square was in the middle, and the circle was small. "
        "Hello, said the circle, how many are there? There are two, said the square, you and I. "
        "Then a yellow star was above them, and there were three.",
    ),
)
"""Questions without a picture, and their answers."""

ELSEWHERE = (
    "What is two plus two?",
    "Write a poem about the sea.",
    "Who was the first person on the moon?",
    "Explain how a computer works.",
    "Translate this to German: good morning.",
    "What time is it?",
    "Tell me a joke.",
    "Summarise this text.",
    "Why is the sky blue?",
    "List three animals.",
    "What is the capital of Spain?",
    "Is it going to rain?",
    "Write a long text about trains.",
    "How do I cook rice?",
    "Can you help me with my code?",
    "print('x')",
    "What is the meaning of life?",
)
"""What the model does not know; it says so."""
