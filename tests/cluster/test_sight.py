"""What the demo's vision model sees, asked as a client asks: real vLLM behind the real gateway."""

import base64
import io
from random import Random
from typing import Any

import pytest

from tests.cluster.server import Server
from tests.demo_vision.pictures import Group, Scene, draw

pytestmark = pytest.mark.timeout(600)


def picture(*groups: Group, ground: str = "white", seed: int = 0) -> dict[str, Any]:
    """A part of a message: a drawing as a PNG in a data address."""
    file = io.BytesIO()
    draw(Scene(groups, ground), Random(seed), (224, 224)).picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def ask(server: Server, question: str, *pictures: dict[str, Any]) -> str:
    """The answer to a question about pictures; it must have come to its own end."""
    content = [*pictures, {"type": "text", "text": question}]
    answer = server.chat("qwen-vl", messages=[{"role": "user", "content": content}], max_tokens=64)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"]
    return text


COLOURS = ("red", "green", "blue", "yellow", "purple", "black")


def test_it_names_the_colour_of_a_shape_and_of_the_ground(server: Server) -> None:
    """Five of six at least: it is a small model, and a blind one would get one."""
    said, grounds = {}, []
    for seed, colour in enumerate(COLOURS):
        shown = picture(Group("circle", colour, 1), seed=seed)
        said[colour] = ask(server, "What colour is the circle?", shown)
        grounds.append("white" in ask(server, "What colour is the background?", shown))
    print(said, grounds)
    assert len([colour for colour in COLOURS if colour in said[colour]]) >= 5
    assert sum(grounds) >= 5


def test_it_sees_the_same_after_a_switch_away_and_back(server: Server) -> None:
    shown = picture(Group("square", "blue", 1))
    before = ask(server, "What colour is it?", shown)
    for model in ("qwen-14b", "qwen-vl"):
        assert server.switch(model).json()["state"] == "done"
    assert ask(server, "What colour is it?", shown) == before


def test_it_takes_two_pictures(server: Server) -> None:
    """It tells them apart less often than not, so only that it answers is asked."""
    shown = picture(Group("square", "blue", 1)), picture(Group("circle", "red", 1), seed=1)
    assert ask(server, "What colour is the square in the first picture?", *shown)


def test_it_chats_without_a_picture(server: Server) -> None:
    assert ask(server, "What is the capital of France?") == "The capital of France is Paris."
    assert "picture" in ask(server, "Hello")
