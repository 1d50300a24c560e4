"""The Python client against a gateway: answers, streams, events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app import client
from serve_app.client import LLMClient
from serve_app.client.transport import Clock
from serve_app.gateway.relay import Relay
from tests.gateway.conftest import MESSAGES, A, B, Backend, Front
from tests.gateway.fake_engine import TEXT, Fault
from tests.gateway.scripted import Time


@pytest.fixture
async def llm(backend: Backend) -> AsyncIterator[LLMClient]:
    soon = Clock(sleep=lambda _: asyncio.sleep(0.05), jitter=lambda: 0.0)
    async with LLMClient(f"http://127.0.0.1:{backend.port}", clock=soon) as llm:
        yield llm


def text(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


async def test_health_and_models(llm: LLMClient, backend: Backend) -> None:
    """As the backend tells them."""
    await backend.serving(A)
    assert (await llm.health_check())["resident"] == A
    assert {m["id"]: m["status"] for m in await llm.models()}[A] == "resident"


async def test_a_chat_is_the_answer_as_openai_shapes_it(llm: LLMClient, backend: Backend) -> None:
    """A plain dict."""
    await backend.serving(A)
    answer = await llm.chat(model=A, messages=MESSAGES, temperature=0)
    assert (answer["object"], answer["choices"][0]["message"]["content"]) == (
        "chat.completion",
        TEXT,
    )


@pytest.mark.parametrize(("num", "limits"), [(10, {}), (100, {"max_queued": 40})])
async def test_a_gather_is_answered_whole(llm: LLMClient, backend: Backend, num: int) -> None:
    """Two are in service and some queue here: the rest is sent away and comes again."""
    await backend.serving(A)
    asked = [llm.chat(model=A, messages=MESSAGES) for _ in range(num)]
    answers = await asyncio.gather(*asked)
    assert [a["choices"][0]["message"]["content"] for a in answers] == [TEXT] * num


async def test_a_stream_is_chunks_as_openai_shapes_them(llm: LLMClient, backend: Backend) -> None:
    """To its end, as they come."""
    engine = await backend.serving(A)
    engine.next_token.clear()
    chunks = []
    async for chunk in llm.stream(model=A, messages=MESSAGES):
        chunks.append(chunk)
        engine.next_token.set()
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (text(chunks), chunks[-1]["choices"][0]["finish_reason"]) == (TEXT, "stop")


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.DEATH_EVENT, Fault.DONE_WITHOUT_FINISH])
async def test_a_stream_that_breaks_raises(llm: LLMClient, backend: Backend, fault: Fault) -> None:
    """What came before has been given; why it ended is the error's code."""
    engine = await backend.serving(A)
    engine.fault = fault
    chunks: list[dict[str, Any]] = []

    async def collect() -> None:
        async for chunk in llm.stream(model=A, messages=MESSAGES):
            chunks.append(chunk)

    with pytest.raises(client.AnswerCut) as caught:
        await collect()
    assert TEXT.startswith(text(chunks))
    assert caught.value.code == "engine_restarting"


async def test_a_stream_of_a_model_that_fails_raises_as_a_chat_does(
    llm: LLMClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where heartbeats have been sent before."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    has_beaten = asyncio.Event()
    beat = Relay._send_heartbeat

    async def seen(answer: Relay, send: Any) -> None:
        await beat(answer, send)
        has_beaten.set()

    monkeypatch.setattr(Relay, "_send_heartbeat", seen)
    await backend.serving(B)
    stream = llm.stream(model=A, messages=MESSAGES)
    first = asyncio.ensure_future(anext(stream))
    await has_beaten.wait()
    await backend.fail(A, 1)
    with pytest.raises(client.ModelLoadFailed, match="weights are cut short"):
        await first


async def test_leaving_a_stream_frees_its_place(llm: LLMClient, backend: Backend) -> None:
    """The engine hears of it."""
    engine = await backend.serving(A)
    engine.next_token.clear()
    stream = llm.stream(model=A, messages=MESSAGES)
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(60):
        await engine.aborted.acquire()
    await backend.idle()


async def test_a_request_that_is_not_to_wait_is_told_who_is_resident(
    llm: LLMClient, backend: Backend
) -> None:
    """At once."""
    await backend.serving(B)
    with pytest.raises(client.ModelNotResident, match=B):
        await llm.chat(model=A, messages=MESSAGES, switch="never")


class Dropping:
    """Breaks the first connections of an application after so many bytes of body."""

    def __init__(self, front: Front, num_bytes: int, num_drops: int) -> None:
        assert front.app
        self._app, self._num_bytes, self._num_left = front.app, num_bytes, num_drops
        self.last_ids: list[str | None] = []
        front.app = self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"last-event-id")
        self.last_ids.append(given.decode() if given else None)
        if not self._num_left:
            return await self._app(scope, receive, send)
        self._num_left -= 1
        num_sent = 0

        async def counted(message: Any) -> None:
            nonlocal num_sent
            await send(message)
            num_sent += len(message.get("body", b""))
            if num_sent >= self._num_bytes:
                raise ConnectionResetError

        await self._app(scope, receive, counted)
        return None


async def test_events_go_on_after_a_dropped_connection(
    llm: LLMClient, backend: Backend, front: Front
) -> None:
    """From the last one that was seen: none is missed, none comes twice."""
    dropping = Dropping(front, num_bytes=60, num_drops=3)
    seen = []
    async with asyncio.timeout(60):
        async for event in llm.events():
            if event.kind == "connected":
                await backend.switchboard.happen("switch", number=len(seen))
            else:
                seen.append(event)
            if len(seen) == 4:
                break
    assert [event.data["number"] for event in seen] == [0, 1, 2, 3]
    assert [event.id for event in seen] == [f"boot-1-{n}" for n in range(1, 5)]
    assert dropping.last_ids == [None, "boot-1-1", "boot-1-2", "boot-1-3"]


async def test_events_outlive_the_switchboard_and_tell_a_gap(
    llm: LLMClient, backend: Backend
) -> None:
    """Its successor counts anew."""
    await backend.switchboard.happen("switch", number=0)
    kinds = []
    async with asyncio.timeout(60):
        async for event in llm.events():
            kinds.append(event.kind)
            if kinds == ["connected"]:
                await backend.show(boot="boot-2")
            if event.kind == "switch":
                break
    assert kinds == ["connected", "connected", "gap", "switch"]


async def test_events_give_up_when_the_backend_stays_away(backend: Backend) -> None:
    """With what is wrong."""
    url = f"http://127.0.0.1:{backend.port}"
    async with LLMClient(url, timeout_s=20, clock=Time().clock()) as llm:
        events = llm.events()
        await anext(events)
        await backend.switchboard.go_away()
        with pytest.raises(client.APIError, match="Switchboard cannot be reached"):
            await anext(events)
