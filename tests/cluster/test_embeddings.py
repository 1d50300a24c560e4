"""Embeddings of the vision model, by OpenAI's own package and in vLLM's chat form."""

import base64
import math

import openai
import pytest

from deployments.model_server.golden_probe import red_disc
from tests.cluster.server import Server

pytestmark = pytest.mark.timeout(600)


def length(vector: list[float]) -> float:
    return math.hypot(*vector)


def test_texts_and_a_picture_are_embedded(server: Server) -> None:
    """A request for an embedding has the task switched to; a chat has it switched back."""
    assert server.chat("qwen-vl").status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        made = client.embeddings.create(model="qwen-vl", input=["a red circle", "a blue square"])
    first, second = (item.embedding for item in made.data)
    assert made.model == "qwen-vl"
    assert len(first) == len(second) > 100
    assert first != second
    assert length(first) == pytest.approx(1, abs=0.01)
    health = server.get("/health")
    assert (health["resident"], health["task"]) == ("qwen-vl", "embed")

    url = "data:image/png;base64," + base64.b64encode(red_disc()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": content}]}
    with server.http as http:
        seen = http.post("/v1/embeddings", json=body)
    assert seen.status_code == 200, seen.text
    assert seen.headers["x-model"] == "qwen-vl"
    assert len(seen.json()["data"][0]["embedding"]) == len(first)

    assert server.chat("qwen-vl").status_code == 200
    assert server.get("/health")["task"] == "generate"
