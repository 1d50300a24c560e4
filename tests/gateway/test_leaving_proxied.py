"""Clients that leave, through the real HAProxy: gone within a second, and nothing spins."""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.residency import State
from deployments.settings import Settings
from tests.gateway.cached import with_cache
from tests.gateway.conftest import CHAT, MESSAGES, A, B, Backend, until
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.proxied import Proxy
from tests.gateway.voices import VOICES
from tests.raw import Leaving, RawClient, request

pytestmark = pytest.mark.timeout(150)

WAYS = [*Leaving]
ROUTES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
_NUM_QUEUED = 4  # as many as the settings of these tests let wait
_SPINNING = 0.3  # of a core; at rest it takes 0.00 to 0.02, and spinning 0.5 to 0.9


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a cache: a question without a temperature is asked anew each time."""
    return with_cache(settings, tmp_path, "memory://")


async def is_gone(backend: Backend, engine: FakeEngine, proxy: Proxy) -> None:
    """From the engine, and from the gateway's counts as `/health` tells them; HAProxy rests."""
    await until(lambda: not engine.num_running, deadline_s=1)
    await backend.idle(deadline_s=1)
    async with backend.client.get("/health") as response:
        health = await response.json()
    assert (health["in_flight"], health["queued"]) == (0, 0)
    assert await proxy.cpu_share() < _SPINNING


async def leave_unanswered(
    backend: Backend, proxy: Proxy, way: Leaving, path: str, *, is_bytewise: bool
) -> None:
    """Ask, leave while the engine works on it, and see that all of it is gone."""
    engine = await backend.serving()
    engine.first_byte.clear()
    async with await RawClient.connect(proxy.port) as client:
        send = client.send_bytewise if is_bytewise else client.send
        await send(*request(path, {"model": A} | ROUTES[path]))
        await until(lambda: engine.num_running)
        client.leave(way)
        await is_gone(backend, engine, proxy)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ROUTES)
async def test_leaving_before_the_answer(
    backend: Backend, proxy: Proxy, path: str, way: Leaving
) -> None:
    """Head and body came in two segments, as all usual clients send them."""
    await leave_unanswered(backend, proxy, way, path, is_bytewise=False)


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_after_a_request_that_came_byte_by_byte(
    backend: Backend, proxy: Proxy, way: Leaving
) -> None:
    await leave_unanswered(backend, proxy, way, CHAT, is_bytewise=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", [*VOICES])
async def test_leaving_mid_stream(backend: Backend, proxy: Proxy, path: str, way: Leaving) -> None:
    """Between two tokens."""
    engine = await backend.serving()
    engine.tokens = ["word "] * 10_000
    async with await RawClient.connect(proxy.port) as client:
        await client.send(*request(path, {"model": A, "stream": True} | ROUTES[path]))
        await client.until(b"word ")
        engine.next_token.clear()
        client.leave(way)
        await is_gone(backend, engine, proxy)


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_in_the_middle_of_an_upload(
    backend: Backend, proxy: Proxy, way: Leaving
) -> None:
    """More has come than the gateway's server reads ahead."""
    engine = await backend.serving()
    head, body = request(CHAT, {"model": A, "messages": MESSAGES, "user": "x" * 1_000_000})
    async with await RawClient.connect(proxy.port) as client:
        await client.send(head, body[:500_000])
        client.leave(way)
        await is_gone(backend, engine, proxy)
    assert not engine.bodies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_while_a_switch_runs(
    backend: Backend, proxy: Proxy, way: Leaving, stream: bool
) -> None:
    """Whoever waited for the other model is forgotten, and nobody switches for it any more."""
    engine = await backend.serving(A)
    await backend.show(state=State.DRAINING)
    body = {"model": B, "messages": MESSAGES, "stream": stream}
    async with await RawClient.connect(proxy.port) as client:
        await client.send(*request(CHAT, body))
        await until(lambda: backend.admission.num_queued)
        client.leave(way)
        await is_gone(backend, engine, proxy)


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_the_queue(backend: Backend, proxy: Proxy, way: Leaving) -> None:
    """The engine is full; who leaves was never in it."""
    engine = await backend.serving()
    engine.first_byte.clear()
    busy = [backend.asking() for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    async with await RawClient.connect(proxy.port) as client:
        await client.send(*request(CHAT, {"model": A, "messages": MESSAGES}))
        await until(lambda: backend.admission.num_queued)
        client.leave(way)
        await until(lambda: not backend.admission.num_queued, deadline_s=1)
        assert await proxy.cpu_share() < _SPINNING
    engine.first_byte.set()
    assert [(await task)[0] for task in busy] == [200, 200]
    assert len(engine.bodies) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_a_shared_generation(backend: Backend, proxy: Proxy, way: Leaving) -> None:
    """One of two who ask the same leaves and the other has the answer; with both it ends."""
    engine = await backend.serving()
    engine.first_byte.clear()
    same = {"model": A, "messages": MESSAGES, "temperature": 0}
    async with (
        await RawClient.connect(proxy.port) as first,
        await RawClient.connect(proxy.port) as second,
        await RawClient.connect(proxy.port) as third,
    ):
        for client in (first, second):
            await client.send(*request(CHAT, same))
        await until(lambda: backend.gateway.cache.counts.shared == 1 and engine.num_running)
        first.leave(way)
        await third.send(*request(CHAT, same))
        await until(lambda: backend.gateway.cache.counts.shared == 2)
        assert engine.num_running == 1
        second.leave(way)
        third.leave(way)
        await is_gone(backend, engine, proxy)


async def test_many_who_give_up_while_a_switch_runs_cost_nothing(
    backend: Backend, proxy: Proxy
) -> None:
    """They took both cores, until it was done."""
    engine = await backend.serving(A)
    await backend.show(state=State.DRAINING)
    clients = [await RawClient.connect(proxy.port) for _ in range(_NUM_QUEUED)]
    for client in clients:
        await client.send(*request(CHAT, {"model": B, "messages": MESSAGES}))
    await until(lambda: backend.admission.num_queued == len(clients))
    for client in clients:
        client.leave(Leaving.FIN)
    await is_gone(backend, engine, proxy)


async def test_who_stays_has_the_answer(backend: Backend, proxy: Proxy) -> None:
    """The same requests, plain and streamed, to their end over one connection."""
    await backend.serving()
    async with await RawClient.connect(proxy.port) as client:
        await client.send(*request(CHAT, {"model": A, "messages": MESSAGES}))
        _, _, body = (await client.until(b'"usage"')).partition(b"\r\n\r\n")
        assert json.loads(body)["object"] == "chat.completion"
        await client.send_bytewise(
            *request(CHAT, {"model": A, "messages": MESSAGES, "stream": True})
        )
        await client.until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
