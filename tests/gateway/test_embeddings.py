"""Embeddings: another task of the same model, so another thing to be resident."""

import asyncio
from typing import Any

import pytest

from deployments.residency import State
from tests.gateway.conftest import CHAT, Backend, error_of, until

EMBEDDINGS = "/v1/embeddings"
VL = "qwen-vl"


async def post(backend: Backend, path: str = EMBEDDINGS, **fields: Any) -> tuple[int, bytes]:
    headers = {"X-Switch": "never"} if fields.pop("never", False) else {}
    async with backend.client.post(path, json={"model": VL} | fields, headers=headers) as response:
        return response.status, await response.read()


async def test_an_engine_that_embeds_answers_under_the_models_own_name(backend: Backend) -> None:
    """`X-Model` names the model, not the task."""
    engine = await backend.engine(VL)
    await backend.show(state=State.SERVING, holder="qwen-vl:embed", endpoint=engine.path, epoch=2)
    async with backend.client.post(EMBEDDINGS, json={"model": VL, "input": "red"}) as response:
        assert response.status == 200
        assert response.headers["X-Model"] == VL
        assert await response.read() == engine.last_answer


async def test_a_chat_is_not_sent_to_an_engine_that_embeds(backend: Backend) -> None:
    """Nor an embedding to one that chats: each is told what is resident."""
    messages = [{"role": "user", "content": "Hello"}]
    await backend.show(state=State.SERVING, holder="qwen-vl:embed")
    status, body = await post(backend, CHAT, messages=messages, never=True)
    assert status == 503
    assert "qwen-vl is not resident; qwen-vl:embed is" in error_of(body)["message"]
    await backend.serving(VL)
    status, body = await post(backend, input="red", never=True)
    assert status == 503
    assert "qwen-vl:embed is not resident; qwen-vl is" in error_of(body)["message"]


async def test_a_waiting_embedding_asks_for_its_task(backend: Backend) -> None:
    """The Switchboard hears of the task, and the request goes on once that serves."""
    await backend.serving(VL)
    asking = asyncio.create_task(post(backend, input=["red", "blue"]))
    await backend.switchboard.told(lambda news: "qwen-vl:embed" in news.waiting)
    engine = await backend.engine(VL)
    await backend.show(state=State.SERVING, holder="qwen-vl:embed", endpoint=engine.path, epoch=2)
    assert (await asking)[0] == 200
    await until(lambda: backend.gateway.admission.num_in_flight == 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Exactly one of `input` and `messages` is required."),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "Exactly one of `input`"),
        ({"input": ["a"] * 257}, "Invalid 'input': it has 257 texts; at most 256 are allowed."),
        ({"input": "a", "model": "qwen-14b"}, "qwen-14b cannot embed; it can generate."),
    ],
)
async def test_a_bad_embedding_is_refused(
    backend: Backend, fields: dict[str, Any], message: str
) -> None:
    """Before anybody waits or switches."""
    status, body = await post(backend, **fields)
    assert status == 400
    assert error_of(body)["message"].startswith(message)


async def test_a_model_that_cannot_embed_is_the_wrong_field(backend: Backend) -> None:
    """`/v1/embeddings` has no field `task`, by which the error was named."""
    _, body = await post(backend, model="qwen-14b", input="a")
    assert error_of(body)["param"] == "model"
