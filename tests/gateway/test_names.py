"""Aliases and variants of models, and models that reason apart from their answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.settings import Settings
from deployments.settings.models import Variant
from tests.gateway.cached import with_cache
from tests.gateway.conftest import CHAT, A, B, Backend, error_of
from tests.gateway.fake_engine import TEXT

PRECISE = Variant(defaults={"top_p": 0.5}, forced={"temperature": 0}, dropped=["frequency_penalty"])


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """The first model has other names, and the second reasons."""
    first, second = settings.models[A], settings.models[B]
    engine = second.engine.model_copy(update={"reasoning_parser": "qwen3"})
    changed = {
        A: first.model_copy(
            update={"aliases": ["gpt-4o-mini", "claude-*"], "variants": {"precise": PRECISE}}
        ),
        B: second.model_copy(update={"engine": engine}),
    }
    cached = with_cache(settings, tmp_path, "memory://")
    return cached.model_copy(update={"models": settings.models | changed})


@pytest.mark.parametrize("asked", [A, "gpt-4o-mini", "claude-sonnet-4-5", f"{A}:precise"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_names_the_model_as_it_was_asked_for(
    backend: Backend, asked: str, stream: bool
) -> None:
    """The engine sees the model's own name, and `X-Model` tells it. A text with a model's name in
    it stays as it is."""
    engine = await backend.serving()
    engine.tokens = ["Try ", f'"model":"{A}"', " with me."]
    async with await backend.chat(model=asked, stream=stream) as response:
        raw = await response.read()
        assert response.headers["X-Model"] == A
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if b"{" in line]
    answers = [json.loads(line) for line in (lines if stream else [raw])]
    assert {answer["model"] for answer in answers} == {asked}
    pieces = [c.get("delta", c.get("message")) for a in answers for c in a["choices"]]
    assert "".join(piece.get("content") or "" for piece in pieces) == "".join(engine.tokens)
    assert json.loads(engine.bodies[-1])["model"] == A


async def test_a_variant_sets_parameters(backend: Backend) -> None:
    """Forced ones win, defaults stand back, dropped ones are gone; of other requests none are."""
    engine = await backend.serving()
    asked = {"temperature": 0.9, "frequency_penalty": 1.0, "top_p": 0.7, "cache_salt": "1"}
    await backend.asking(model=f"{A}:precise", **asked)
    seen = json.loads(engine.bodies[-1])
    assert (seen["temperature"], seen["top_p"]) == (0, 0.7)
    assert "frequency_penalty" not in seen
    await backend.asking(model=f"{A}:precise", cache_salt="2")
    assert json.loads(engine.bodies[-1])["top_p"] == 0.5
    await backend.asking(model=A, **asked | {"cache_salt": "3"})
    assert json.loads(engine.bodies[-1])["temperature"] == 0.9


async def test_a_cached_answer_names_the_model_as_it_was_asked_for(backend: Backend) -> None:
    engine = await backend.serving()
    for asked in (A, "gpt-4o-mini", A, "gpt-4o-mini"):
        status, body = await backend.asking(model=asked, temperature=0)
        assert (status, json.loads(body)["model"]) == (200, asked)
    assert len(engine.bodies) == 2  # once for each name


async def test_models_are_listed_by_each_name(backend: Backend) -> None:
    async with backend.client.get("/v1/models") as response:
        listed = {model["id"]: model for model in (await response.json())["data"]}
    assert {A, "gpt-4o-mini", f"{A}:precise"} <= set(listed)
    assert listed["gpt-4o-mini"]["root"] == listed[A]["root"]
    async with backend.client.get("/v1/models/claude-opus-4-1") as response:
        assert (await response.json())["id"] == "claude-opus-4-1"


async def test_an_unknown_name_is_404_and_the_names_are_told(backend: Backend) -> None:
    status, body = await backend.asking(model="gpt-4")
    assert status == 404
    assert "gpt-4o-mini" in error_of(body)["message"]


async def test_an_admin_may_use_any_name(backend: Backend) -> None:
    await backend.serving()
    body = {"model": "gpt-4o-mini", "dry_run": True}
    async with backend.client.post("/admin/switch", json=body) as response:
        assert response.status == 200
    assert backend.switchboard.questions[-1] == ("would_switch", A)


# --- reasoning ---


def reasoned(text: str, reasoning: str) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": text, "reasoning": reasoning}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "x", "object": "chat.completion", "model": B, "choices": [choice]}
    return 200, json.dumps(answer, separators=(",", ":")).encode()


async def test_reasoning_comes_under_the_name_that_clients_read(backend: Backend) -> None:
    """vLLM calls it `reasoning`; a text that quotes that stays as it is."""
    engine = await backend.serving(B)
    engine.raw_answer = reasoned('say {"reasoning":1}', "because")
    _, body = await backend.asking(model=B)
    message = json.loads(body)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": 'say {"reasoning":1}',
        "reasoning_content": "because",
    }


@pytest.mark.parametrize(
    "fields",
    [{"reasoning_effort": "low"}, {"thinking_token_budget": 64}],
    ids=lambda f: next(iter(f)),
)
async def test_a_model_that_reasons_is_told_how_much(
    backend: Backend, fields: dict[str, Any]
) -> None:
    """For another it is left out and named."""
    for model, is_told in ((B, True), (A, False)):
        engine = await backend.serving(model, epoch=2 if model == A else 1)
        async with await backend.chat(model=model, **fields) as response:
            assert response.status == 200
            ignored = response.headers.get("X-Ignored-Fields", "")
        seen = json.loads(engine.bodies[-1])
        assert (next(iter(fields)) in seen) is is_told
        assert (ignored == next(iter(fields))) is not is_told


async def test_thinking_reaches_a_model_that_reasons(backend: Backend) -> None:
    engine = await backend.serving(B)
    body = {
        "model": B,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "hi"}],
        "thinking": {"type": "enabled", "budget_tokens": 100},
    }
    async with backend.client.post("/v1/messages", json=body) as response:
        assert response.status == 200
    assert json.loads(engine.bodies[-1])["thinking"]["budget_tokens"] == 100


async def test_a_model_without_other_names_is_passed_through(backend: Backend) -> None:
    """Byte for byte."""
    engine = await backend.serving()
    body = json.dumps({"model": A, "messages": [{"role": "user", "content": "hi"}]})
    headers = {"content-type": "application/json"}
    async with backend.client.post(CHAT, data=body, headers=headers) as response:
        assert await response.read() == engine.last_answer
    assert engine.bodies == [body.encode()]
    assert TEXT in json.loads(engine.last_answer)["choices"][0]["message"]["content"]
