"""Requests that an engine refuses, which lives on: a stream is told as a plain request is."""

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.conftest import A, Backend
from tests.gateway.fake_engine import REFUSAL, Fault
from tests.gateway.sse import check_of
from tests.gateway.test_leaving_proxied import ROUTES
from tests.gateway.voices import VOICES

# How vLLM words what it could not make of the model's own answer.
_BROKEN_ANSWERS = [
    "1 validation error for AnthropicContentBlock\ninput\n  Input should be a valid dictionary "
    "[type=dict_type, input_value='gaben', input_type=str]",
    "Expecting ',' delimiter: line 1 column 9 (char 8)",
]


def body_of(path: str, *, stream: bool) -> dict[str, Any]:
    streaming = {"stream": True} if stream else {}
    return {"model": A} | ROUTES[path] | streaming


@pytest.mark.parametrize("is_bytewise", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", VOICES)
async def test_a_refusal_has_its_status_and_its_reason(
    backend: Backend, path: str, stream: bool, is_bytewise: bool
) -> None:
    """The routes' streams tell it as an event, not at all, or as a broken connection."""
    engine = await backend.serving()
    engine.fault, engine.is_bytewise = Fault.REFUSED, is_bytewise
    async with backend.client.post(path, json=body_of(path, stream=stream)) as response:
        assert response.status == 400
        assert response.content_type == "application/json"
        error = (await response.json())["error"]
    assert (error["type"], error["message"]) == ("invalid_request_error", REFUSAL)


@pytest.mark.parametrize("path", VOICES)
async def test_a_refusal_after_heartbeats_is_told_with_its_reason(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """In an event of the route's dialect: the 200 is out."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    engine = await backend.engine()
    engine.fault = Fault.REFUSED
    async with backend.client.post(path, json=body_of(path, stream=True)) as response:
        assert response.status == 200
        await backend.serve(engine, epoch=1)
        stream = check_of(path, response.headers["content-type"], await response.read())
    assert stream.num_heartbeats
    assert stream.error
    assert stream.error["message"] == REFUSAL


@pytest.mark.parametrize("path", VOICES)
async def test_an_engine_that_lives_is_not_called_lost(backend: Backend, path: str) -> None:
    """It breaks one answer off; whoever is told of a restart tries the same for ever."""
    engine = await backend.serving()
    engine.fault = Fault.BROKEN_OFF
    async with backend.client.post(path, json=body_of(path, stream=True)) as response:
        assert response.status == 200
        stream = check_of(path, response.headers["content-type"], await response.read())
    assert stream.error
    assert stream.error["code"] == "bad_answer"
    assert stream.texts


@pytest.mark.parametrize("message", _BROKEN_ANSWERS)
async def test_a_broken_answer_is_not_the_client_s_fault(backend: Backend, message: str) -> None:
    """vLLM's 400 for a tool call whose JSON the model has not finished."""
    engine = await backend.serving()
    error = {"type": "BadRequestError", "message": message}
    engine.raw_answer = 400, json.dumps({"type": "error", "error": error}).encode()
    path = "/v1/messages"
    async with backend.client.post(path, json=body_of(path, stream=False)) as response:
        assert response.status == 502
        told = (await response.json())["error"]
    assert (told["type"], told["code"]) == ("api_error", "bad_answer")
    assert "Anthropic" not in told["message"]


@pytest.mark.parametrize("path", VOICES)
async def test_a_stream_s_head_waits_for_the_engine(backend: Backend, path: str) -> None:
    """Until it has begun to answer, a status can still be told."""
    engine = await backend.serving()
    engine.first_byte.clear()
    body = body_of(path, stream=True)
    asking = asyncio.ensure_future(backend.client.post(path, json=body).__aenter__())
    await engine.begun.acquire()
    assert not asking.done()
    engine.first_byte.set()
    async with await asking as response:
        stream = check_of(path, response.headers["content-type"], await response.read())
    assert stream.is_done
    assert response.headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
async def test_responses_end_complete_or_not(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """A length that is used up is an end as good as any."""
    engine = await backend.serving()
    monkeypatch.setattr("tests.gateway.voices.Responses.last_event", last)
    body = body_of("/v1/responses", stream=True)
    async with backend.client.post("/v1/responses", json=body) as response:
        raw = await response.read()
    assert raw == engine.last_answer


async def test_a_failed_response_is_an_error(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason lies in the response that the event holds."""
    await backend.serving()
    monkeypatch.setattr("tests.gateway.voices.Responses.last_event", "response.failed")
    body = body_of("/v1/responses", stream=True)
    async with backend.client.post("/v1/responses", json=body) as response:
        stream = check_of("/v1/responses", response.headers["content-type"], await response.read())
    assert stream.error
    assert "the grammar is broken" in stream.error["message"]
