"""A request for the resident model: bytes in, bytes out."""

import asyncio
import io
import json

import pytest

from tests.gateway.conftest import CHAT, A, Backend, error_of
from tests.gateway.fake_engine import TEXT, Fault
from tests.gateway.sse import check


async def test_a_plain_answer_passes_unchanged(backend: Backend) -> None:
    """Body in and body out are the same bytes, and headers tell who answered."""
    engine = await backend.serving(epoch=7)
    body = json.dumps({"model": A, "messages": [{"role": "user", "content": "é"}], "top_p": 1.0})
    headers = {"content-type": "application/json; charset=utf-8"}
    async with backend.client.post(CHAT, data=f" {body}\n", headers=headers) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("application/json")
        assert response.headers["X-Model"] == A
        assert response.headers["X-Epoch"] == "7"
        assert 0 <= int(response.headers["X-Queue-Ms"]) < 20_000
        assert await response.read() == engine.last_answer
    assert engine.bodies == [f" {body}\n".encode()]


async def test_a_stream_passes_unchanged(backend: Backend) -> None:
    """Every event goes on as it came, with the same headers as a plain answer."""
    engine = await backend.serving(epoch=3)
    async with await backend.chat(stream=True) as response:
        raw = await response.read()
        stream = check(response.headers["content-type"], raw)
        assert response.headers["X-Model"] == A
        assert response.headers["X-Epoch"] == "3"
        assert response.headers["cache-control"] == "no-cache"
    assert raw == engine.last_answer
    assert stream.is_done
    assert stream.texts == {0: TEXT}


async def test_deltas_add_up_to_the_plain_answer(backend: Backend) -> None:
    """Streamed or not, the text is the same; the usage chunk comes through."""
    await backend.serving()
    status, body = await backend.asking()
    stream = await backend.streaming(stream_options={"include_usage": True})
    assert status == 200
    assert stream.texts[0] == json.loads(body)["choices"][0]["message"]["content"]
    assert stream.usage


async def test_tokens_go_on_as_they_come(backend: Backend) -> None:
    """The first event is with the client while the engine still holds the second."""
    engine = await backend.serving()
    engine.next_token.clear()
    async with asyncio.timeout(60), await backend.chat(stream=True) as response:
        first = await response.content.readuntil(b"\n\n")
        assert b'"role":"assistant"' in first
        engine.next_token.set()
        check(response.headers["content-type"], first + await response.read())


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_split_at_every_byte_relays_right(backend: Backend, n: int) -> None:
    """Events that come in pieces, also inside a character, go on whole."""
    engine = await backend.serving()
    engine.is_bytewise = True
    stream = await backend.streaming(n=n)
    assert stream.texts == dict.fromkeys(range(n), TEXT)


async def test_a_large_body_reaches_the_engine(backend: Backend) -> None:
    """A picture's worth of bytes passes whole, and without a warning."""
    engine = await backend.serving()
    messages = [{"role": "user", "content": "x" * 3_000_000}]
    body = json.dumps({"model": A, "messages": messages}).encode()
    headers = {"content-type": "application/json"}
    async with backend.client.post(CHAT, data=io.BytesIO(body), headers=headers) as response:
        assert response.status == 200
    assert engine.bodies == [body]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_s_own_400_passes_unchanged(backend: Backend, stream: bool) -> None:
    """What vLLM says of a bad parameter is what the client reads."""
    engine = await backend.serving()
    engine.fault = Fault.BAD_REQUEST
    status, body = await backend.asking(stream=stream)
    assert status == 400
    assert error_of(body)["message"] == "max_tokens is too large"


async def test_the_host_header_does_not_choose_the_engine_s_route(backend: Backend) -> None:
    """A Host with a path in it is refused; it never becomes a path."""
    engine = await backend.serving()
    body = json.dumps({"model": A, "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x/sleep?\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, _ = await backend.raw(head.encode() + body)
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
    assert not engine.bodies
