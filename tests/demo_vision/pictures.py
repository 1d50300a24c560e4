"""The drawn pictures from which the demo's vision model learns to see.

Everything is drawn from the `random.Random` it is given: the same seed, the same pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
MAX_COUNT = 5
"""Shapes in one picture, at most."""

SHADES = {
    "red": ("#ff0000", "#dc143c", "#c81e1e"),
    "green": ("#00ff00", "#008000", "#32b432"),
    "blue": ("#0000ff", "#1e64f0", "#000096"),
    "yellow": ("#ffff00", "#ffd700", "#f0e628"),
    "orange": ("#ffa500", "#ff8c00", "#fa7814"),
    "purple": ("#800080", "#8a2be2", "#6e1eaa"),
    "pink": ("#ffc0cb", "#ff69b4", "#ff96be"),
    "brown": ("#8b4513", "#64371e", "#785028"),
    "black": ("#000000", "#141414", "#1e1e1e"),
    "white": ("#ffffff", "#f5f5f5", "#faf5eb"),
    "grey": ("#808080", "#a0a0a0", "#6e6e6e"),
}
"""What each colour may look like; a picture takes a mixture of them."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Group:
    """Shapes of one kind and one colour."""

    shape: str
    colour: str
    count: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one group or two, of different shapes and colours, on a ground."""

    groups: tuple[Group, ...]
    ground: str


@dataclass(frozen=True)
class Spot:
    """Where one shape of a group lies: centre and radii, in widths and heights of the picture."""

    group: Group
    x: float
    y: float
    radius_x: float
    radius_y: float


@dataclass(frozen=True)
class Drawing:
    """A picture, and where on it the shapes are."""

    picture: Image.Image
    silhouette: Image.Image
    """White where a shape is, black elsewhere."""
    spots: tuple[Spot, ...]


def imagine(random: Random) -> Scene:
    """A scene: half of them hold one shape, a quarter several alike, a quarter two kinds.

    Every other ground is white, as paper is.
    """
    ground = "white" if random.random() < 0.5 else random.choice(list(SHADES))
    first, second = random.sample([colour for colour in SHADES if colour != ground], 2)
    shape, other = random.sample(SHAPES, 2)
    kind = random.random()
    if kind < 0.5:
        return Scene((Group(shape, first, 1),), ground)
    if kind < 0.75:
        return Scene((Group(shape, first, random.randint(2, MAX_COUNT)),), ground)
    count = random.choice((1, 1, 2, 3))
    others = random.randint(1, min(3, MAX_COUNT - count))
    return Scene((Group(shape, first, count), Group(other, second, others)), ground)


def draw(scene: Scene, random: Random, size: tuple[int, int]) -> Drawing:
    """The scene as a picture of `size` (width, height): places, sizes and shades are random."""
    scale = random.choice((1, 2))  # hard edges, or smooth ones
    width, height = size[0] * scale, size[1] * scale
    picture = Image.new("RGB", (width, height), shade(scene.ground, random))
    silhouette = Image.new("L", (width, height))
    pen, outline_pen = ImageDraw.Draw(picture), ImageDraw.Draw(silhouette)
    shapes = [group for group in scene.groups for _ in range(group.count)]
    shades = {group: shade(group.colour, random) for group in scene.groups}
    places = _places(len(shapes), width, height, random)
    spots = []
    for group, (x, y, radius) in zip(shapes, places, strict=True):
        turn = random.uniform(-0.1, 0.1)
        _draw_shape(pen, group.shape, (x, y), radius, turn, shades[group])
        _draw_shape(outline_pen, group.shape, (x, y), radius, turn, 255)
        spots.append(Spot(group, x / width, y / height, radius / width, radius / height))
    if scale > 1:
        picture = picture.resize(size, Image.Resampling.BOX)
    return Drawing(picture, silhouette, tuple(spots))


def shade(colour: str, random: Random) -> Colour:
    """One of the looks of `colour`."""
    anchors = [tuple(bytes.fromhex(look[1:])) for look in SHADES[colour]]
    if random.random() < 0.3:
        red, green, blue = random.choice(anchors)
        return red, green, blue
    weights = [random.random() for _ in anchors]
    red, green, blue = (
        round(sum(w * a[i] for w, a in zip(weights, anchors, strict=True)) / sum(weights))
        for i in range(3)
    )
    return red, green, blue


def _places(
    count: int, width: int, height: int, random: Random
) -> list[tuple[float, float, float]]:
    """Centres and radii of `count` shapes that do not touch."""
    side = min(width, height)
    largest = side * (0.4, 0.28, 0.24, 0.22, 0.2)[count - 1]
    places: list[tuple[float, float, float]] = []
    radius = random.uniform(0.6, 1) * largest
    while len(places) < count:
        mine = radius * random.uniform(0.8, 1)
        x = random.uniform(mine, width - mine)
        y = random.uniform(mine, height - mine)
        if all(math.dist((x, y), (a, b)) > (mine + r) * 1.1 for a, b, r in places):
            places.append((x, y, mine))
        else:
            radius = max(radius * 0.98, 0.12 * side)
    return places


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    turn: float,
    fill: Colour | int,
) -> None:
    """Draw `shape` inside the circle of `radius` round `centre`, turned by `turn` radians."""
    x, y = centre
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    cos, sin = math.cos(turn), math.sin(turn)
    points = [
        (x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos))
        for a, b in OUTLINES[shape]
    ]
    pen.polygon(points, fill=fill)


def _polygon(corners: int, first: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle from the angle `first`; with `inner`, those of a star."""
    radii = (1.0,) if inner is None else (1.0, inner)
    steps = corners * len(radii)
    return [
        (radii[i % len(radii)] * math.cos(angle), radii[i % len(radii)] * math.sin(angle))
        for i in range(steps)
        for angle in (first + 2 * math.pi * i / steps,)
    ]


OUTLINES = {
    "square": _polygon(4, math.pi / 4),
    "triangle": _polygon(3, -math.pi / 2),
    "star": _polygon(5, -math.pi / 2, inner=0.42),
}
"""Corners in a circle of radius 1, y downwards."""
