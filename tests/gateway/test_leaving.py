"""Clients that leave: their place is free and their generation aborted within two seconds."""

import asyncio
import json

import pytest
from starlette.types import Message

from serve_app.ingress import build_http
from tests.gateway.conftest import CHAT, A, B, Backend, until
from tests.gateway.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(150)


async def leave(task: asyncio.Task[object]) -> None:
    """The client's connection is closed under its request."""
    task.cancel()
    await asyncio.wait([task])


async def is_aborted(engine: FakeEngine) -> None:
    async with asyncio.timeout(60):
        await engine.aborted.acquire()


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_the_queue_frees_the_place(backend: Backend, stream: bool) -> None:
    """Whoever waited for a switch is forgotten, and no engine hears of it."""
    asking = backend.asking(stream=stream)
    await until(lambda: backend.admission.num_queued)
    await leave(asking)
    await backend.idle()
    engine = await backend.serving()
    assert (await backend.asking())[0] == 200
    assert len(engine.bodies) == 1


async def test_leaving_the_queue_is_reported(backend: Backend) -> None:
    """A switch that nobody waits for any more must not be started: the Switchboard is told."""
    engine = await backend.serving(A)
    engine.first_byte.clear()
    busy = backend.asking()
    await until(lambda: engine.num_running)
    asking = backend.asking(model=B)
    await backend.switchboard.told(lambda news: B in news.waiting)
    await leave(asking)
    news = await backend.switchboard.told(lambda news: not news.waiting)
    assert news.in_flight == {1: 1}
    engine.first_byte.set()
    await busy


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_byte_aborts(backend: Backend, stream: bool) -> None:
    """In prefill: the engine's request ends, and the next in the queue takes the place."""
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = [backend.asking(stream=stream) for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    asking.append(backend.asking(stream=stream))
    await until(lambda: backend.admission.num_queued == 1)
    await leave(asking[0])
    await is_aborted(engine)
    await until(lambda: len(engine.bodies) == 3, deadline_s=2)
    engine.first_byte.set()
    assert [(await task)[0] for task in asking[1:]] == [200, 200]


@pytest.mark.parametrize("is_reset", [False, True])
async def test_leaving_mid_stream_aborts(backend: Backend, is_reset: bool) -> None:
    """Between two tokens, by FIN and by RST."""
    engine = await backend.serving()
    engine.next_token.clear()
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": A, "stream": True, "messages": messages}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, writer = await backend.raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(60):
        await reader.readuntil(b'"role":"assistant"')
    if is_reset:
        writer.transport.abort()
    else:
        writer.close()
    await is_aborted(engine)
    await backend.idle()
    assert engine.num_running == 0


async def test_leaving_before_the_body_is_complete_takes_no_place(backend: Backend) -> None:
    """Half a body is nobody's request."""
    engine = await backend.serving()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    _, writer = await backend.raw(f'{head}Content-Length: 100\r\n\r\n{{"model":'.encode())
    writer.close()
    assert (await backend.asking())[0] == 200
    assert len(engine.bodies) == 1


async def test_a_server_that_can_not_send_frees_the_place(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASGI lets `send` raise for a client that has left, here at the first heartbeat."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": A, "stream": True, "messages": messages}).encode()
    received = asyncio.Queue[Message]()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(_: Message) -> None:
        raise BrokenPipeError

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": headers,
        "query_string": b"",
    }
    with pytest.raises(BrokenPipeError):
        await build_http(backend.gateway)(scope, received.get, send)
    await backend.idle()
    await backend.serving()
    assert (await backend.asking())[0] == 200


async def test_leaving_while_the_engine_is_gone_frees_the_place(backend: Backend) -> None:
    """Also one that waits for a dead engine's successor is let go."""
    engine = await backend.serving()
    await engine.stop()
    asking = backend.asking()
    await until(lambda: backend.admission.num_in_flight)
    await leave(asking)
    await backend.idle()


async def test_one_who_leaves_does_not_disturb_the_others(backend: Backend) -> None:
    """The stream beside it goes on to its end."""
    engine = await backend.serving()
    engine.next_token.clear()
    staying, leaving = backend.streaming(), backend.asking(stream=True)
    await until(lambda: engine.num_running == 2)
    await leave(leaving)
    await is_aborted(engine)
    engine.next_token.set()
    assert (await staying).is_done


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_at_any_moment_leaves_nothing_behind(backend: Backend, stream: bool) -> None:
    """The client goes after every number of steps of the loop that a request takes."""
    engine = await backend.serving()
    for num_steps in range(1000):
        asking = backend.asking(stream=stream)
        for _ in range(num_steps):
            await asyncio.sleep(0)
        if asking.done():
            break
        await leave(asking)
        await backend.idle()
        await until(lambda: not engine.num_running, deadline_s=2)
    assert num_steps > 10
    assert (await asking)[0] == 200
