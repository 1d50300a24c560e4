"""What the demo's vision model is taught is true, and the same for the same seed."""

from random import Random

import pytest

from tests.demo_vision.lessons import (
    NUMBERS,
    ask_colour,
    ask_count,
    ask_ground,
    ask_shape,
    describe,
    make_lesson,
)
from tests.demo_vision.pictures import SHADES, Group, Scene, draw, imagine

SCENE = Scene((Group("star", "orange", 1), Group("square", "red", 2)), "white")
SEEDS = range(40)


def colour_of(pixel: tuple[int, int, int]) -> str:
    """The colour with the look nearest to the pixel."""

    def distance(colour: str) -> int:
        looks = [bytes.fromhex(look[1:]) for look in SHADES[colour]]
        return min(sum((a - b) ** 2 for a, b in zip(pixel, look, strict=True)) for look in looks)

    return min(SHADES, key=distance)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_picture_shows_its_scene(seed: int) -> None:
    """Each shape's middle has its colour, and is in its silhouette; there are as many as said."""
    random = Random(seed)
    scene = imagine(random)
    drawing = draw(scene, random, (160, 120))
    assert drawing.picture.size == (160, 120)
    assert [spot.group for spot in drawing.spots] == [
        g for g in scene.groups for _ in range(g.count)
    ]
    for spot in drawing.spots:
        middle = round(spot.x * 160), round(spot.y * 120)
        assert colour_of(drawing.picture.getpixel(middle)) == spot.group.colour
        size = drawing.silhouette.size
        assert (
            drawing.silhouette.getpixel((round(spot.x * size[0]), round(spot.y * size[1]))) == 255
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ground_is_where_no_silhouette_is(seed: int) -> None:
    random = Random(seed)
    scene = imagine(random)
    drawing = draw(scene, random, (112, 112))
    silhouette = drawing.silhouette.resize((112, 112))
    ground = [
        drawing.picture.getpixel((x, y))
        for x in range(0, 112, 7)
        for y in range(0, 112, 7)
        if silhouette.crop((x - 2, y - 2, x + 3, y + 3)).getextrema() == (0, 0)
    ]
    assert {colour_of(pixel) for pixel in ground} == {scene.ground}


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_name_what_was_asked_for(seed: int) -> None:
    random = Random(seed)
    for group in SCENE.groups:
        assert group.colour in ask_colour(group, SCENE, random).answer
        assert group.shape in ask_shape(group, SCENE, random).answer
    assert "white" in ask_ground(SCENE, random).answer
    counted = ask_count(SCENE, random)
    if "stars" in counted.question:
        count = 1
    elif "squares" in counted.question:
        count = 2
    else:
        count = 3 if "shapes" in counted.question else 0
    assert NUMBERS[count] in counted.answer or str(count) in counted.answer


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (SCENE, "One orange star and two red squares on a white background"),
        (Scene((Group("star", "orange", 1),), "grey"), "An orange star on a grey background"),
        (Scene((Group("star", "red", 1),), "orange"), "A red star on an orange background"),
    ],
)
def test_a_scene_in_words(scene: Scene, words: str) -> None:
    assert describe(scene) == words


def test_the_same_seed_gives_the_same_lessons_and_pictures() -> None:
    def work(seed: int) -> tuple[list[object], bytes]:
        random = Random(seed)
        lessons = [make_lesson(random) for _ in range(20)]
        return lessons, draw(imagine(random), random, (112, 112)).picture.tobytes()

    assert work(1) == work(1)
    assert work(1) != work(2)
