"""Every route to an engine: the same way in, and each stream's own end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway import sse
from tests.gateway.conftest import CHAT, A, Backend, error_of, until
from tests.gateway.fake_engine import DYING, TEXT, Fault

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    COMPLETIONS: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": HI, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": HI},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
STREAMED = [CHAT, COMPLETIONS, RESPONSES, MESSAGES]
CHECKS = {
    CHAT: sse.check,
    COMPLETIONS: sse.check,
    RESPONSES: sse.check_responses,
    MESSAGES: sse.check_messages,
}


async def ask(backend: Backend, path: str, **fields: Any) -> tuple[int, bytes]:
    body = {"model": A} | BODIES[path] | fields
    async with backend.client.post(path, json=body) as response:
        return response.status, await response.read()


async def stream(backend: Backend, path: str, **fields: Any) -> sse.Stream:
    body = {"model": A, "stream": True} | BODIES[path] | fields
    async with backend.client.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return CHECKS[path](response.headers["content-type"], await response.read())


def anthropic_error_of(raw: bytes) -> dict[str, Any]:
    value = json.loads(raw)
    assert value["type"] == "error"
    assert set(value["error"]) == {"type", "message", "code"}
    error: dict[str, Any] = value["error"]
    return error


@pytest.mark.parametrize("path", BODIES)
async def test_each_route_passes_body_and_answer_unchanged(backend: Backend, path: str) -> None:
    """Bytes in, bytes out, with the headers that tell who answered."""
    engine = await backend.serving(epoch=7)
    body = json.dumps({"model": A} | BODIES[path], indent=1).encode()
    headers = {"content-type": "application/json"}
    async with backend.client.post(path, data=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["X-Model"] == A
        assert response.headers["X-Epoch"] == "7"
        raw = await response.read()
    assert engine.bodies == [body]
    assert raw == engine.last_answer


@pytest.mark.parametrize("is_bytewise", [False, True])
@pytest.mark.parametrize("path", STREAMED)
async def test_each_route_streams_to_its_own_end(
    backend: Backend, path: str, is_bytewise: bool
) -> None:
    """However the bytes are cut, the events go on whole and the last one is the route's."""
    engine = await backend.serving()
    engine.is_bytewise = is_bytewise
    answer = await stream(backend, path)
    assert answer.is_done
    assert answer.texts == {0: TEXT}


async def test_prompts_times_n_is_how_many_choices_must_finish(backend: Backend) -> None:
    """A completion of two prompts, three times each, has six."""
    await backend.serving()
    body = {"model": A, "stream": True, "prompt": ["a", "b"], "n": 3}
    async with backend.client.post(COMPLETIONS, json=body) as response:
        answer = sse.check(response.headers["content-type"], await response.read(), num_choices=6)
    assert answer.texts == dict.fromkeys(range(6), TEXT)


@pytest.mark.parametrize("is_bytewise", [False, True])
@pytest.mark.parametrize("fault", DYING)
@pytest.mark.parametrize("path", STREAMED)
async def test_a_dying_engine_s_stream_ends_with_one_error_event(
    backend: Backend, path: str, fault: Fault, is_bytewise: bool
) -> None:
    """Also where the engine calls what it cut complete; and nothing of its inside is told."""
    engine = await backend.serving()
    engine.fault, engine.is_bytewise = fault, is_bytewise
    answer = await stream(backend, path)
    assert not answer.is_done
    assert answer.error
    assert "EngineCore" not in answer.error["message"]
    assert "validation error" not in answer.error["message"]
    if not (path == MESSAGES and fault is Fault.DEATH_EVENT):  # vLLM does not say there why
        assert answer.error["code"] == "engine_restarting"
    await backend.idle()


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.ABORT, Fault.DEAD])
@pytest.mark.parametrize("path", STREAMED)
async def test_a_dying_engine_s_plain_answer_is_503(
    backend: Backend, path: str, fault: Fault
) -> None:
    """Also where the engine's answer looks whole."""
    engine = await backend.serving()
    engine.fault = fault
    status, raw = await ask(backend, path)
    assert status == 503
    error = anthropic_error_of(raw) if path == MESSAGES else error_of(raw)
    assert error["code"] == "engine_restarting"


@pytest.mark.parametrize("path", STREAMED)
async def test_one_request_s_error_ends_its_stream(backend: Backend, path: str) -> None:
    """An engine that lives can fail one request."""
    engine = await backend.serving()
    engine.fault = Fault.ERROR_EVENT
    answer = await stream(backend, path)
    assert answer.error
    assert not answer.is_done


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropic_s_clients_get_anthropic_s_errors(backend: Backend, path: str) -> None:
    """From the gateway, from the engine, and for what is no route's method."""
    engine = await backend.serving()
    status, raw = await ask(backend, path, model="nope")
    assert (status, anthropic_error_of(raw)["type"]) == (404, "not_found_error")
    status, raw = await ask(backend, path, mcp_servers=[{"name": "x"}])
    assert (status, anthropic_error_of(raw)["type"]) == (400, "invalid_request_error")
    engine.fault = Fault.BAD_REQUEST
    status, raw = await ask(backend, path)
    assert (status, anthropic_error_of(raw)["message"]) == (400, "max_tokens is too large")
    async with backend.client.get(path) as response:
        assert response.status == 405
        anthropic_error_of(await response.read())


@pytest.mark.parametrize("limits", [{"max_in_service": 1, "max_queued": 0}])
@pytest.mark.parametrize("path", BODIES)
async def test_each_route_takes_a_place_in_service(backend: Backend, path: str) -> None:
    """No way past the limits: where one request is in service, any other is refused."""
    engine = await backend.serving()
    engine.first_byte.clear()
    first = backend.asking()
    await engine.begun.acquire()
    status, raw = await ask(backend, path)
    assert status == 429
    assert b"queue is full" in raw
    engine.first_byte.set()
    assert (await first)[0] == 200


@pytest.mark.parametrize("limits", [{"max_in_service": 1, "max_queued": 0}])
async def test_a_full_queue_is_the_packages_own_error(backend: Backend) -> None:
    """Programs written for OpenAI and Anthropic know it by its type, and when to come again."""
    engine = await backend.serving()
    engine.first_byte.clear()
    first = backend.asking()
    await engine.begun.acquire()
    address = f"http://127.0.0.1:{backend.port}"
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model=A, messages=HI)
    assert full.value.code == "queue_full"
    assert int(full.value.response.headers["retry-after"]) >= 1
    async with anthropic.AsyncAnthropic(base_url=address, api_key="x", max_retries=0) as claude:
        with pytest.raises(anthropic.RateLimitError):
            await claude.messages.create(model=A, messages=HI, max_tokens=1)
    engine.first_byte.set()
    assert (await first)[0] == 200


@pytest.mark.parametrize("fault", [Fault.DONE_WITHOUT_FINISH, Fault.RESET])
async def test_a_cut_stream_raises_in_the_packages(backend: Backend, fault: Fault) -> None:
    """On each route: a program never takes what a dying engine left for an answer."""
    engine = await backend.serving()
    engine.fault = fault
    address = f"http://127.0.0.1:{backend.port}"
    async with (
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
        anthropic.AsyncAnthropic(base_url=address, api_key="x", max_retries=0) as claude,
    ):
        chunks = await client.chat.completions.create(model=A, messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="engine ended"):
            await _read(chunks)
        events = await client.responses.create(model=A, input="hi", stream=True)
        with pytest.raises(openai.APIError, match="engine ended"):
            await _read(events)
        async with claude.messages.stream(model=A, messages=HI, max_tokens=9) as message:
            with pytest.raises(anthropic.APIStatusError, match="engine ended"):
                await message.get_final_message()


async def _read(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.3}])
@pytest.mark.parametrize("path", STREAMED)
async def test_each_stream_is_cut_at_the_request_s_timeout(backend: Backend, path: str) -> None:
    """Between two tokens; the error is the route's kind."""
    engine = await backend.serving()
    engine.tokens = ["word "] * 1_000_000
    async with asyncio.timeout(60):
        answer = await stream(backend, path)
    assert answer.error
    assert answer.error["code"] == "timeout"
    await engine.aborted.acquire()


@pytest.mark.parametrize("path", STREAMED)
async def test_heartbeats_keep_each_stream_alive(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """While a switch is waited for; then the stream goes on as ever."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    waiting = asyncio.create_task(stream(backend, path))
    await until(lambda: backend.admission.num_queued)
    await backend.serving()
    answer = await waiting
    assert answer.is_done
    assert answer.texts == {0: TEXT}
