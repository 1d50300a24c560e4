"""Many who ask the same at once: one generation, and nobody's leaving or lateness hurts another."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Send

from deployments.settings import Settings
from serve_app.cache.shared_generation import SharedGeneration, SharedGenerations
from tests.gateway.cached import Answer, ask, with_cache
from tests.gateway.conftest import CHAT, A, B, Backend, until
from tests.gateway.fake_engine import TEXT, Fault
from tests.gateway.sse import check
from tests.gateway.test_leaving import is_aborted, leave

pytestmark = pytest.mark.timeout(150)

NUM_ASKING = 100


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_cache(settings, tmp_path, "memory://")


def asking(backend: Backend, **fields: Any) -> asyncio.Task[Answer]:
    return asyncio.create_task(ask(backend, **fields))


async def aboard(backend: Backend, num_shared: int) -> None:
    """Until that many have joined others."""
    await until(lambda: backend.gateway.cache.counts.shared == num_shared)


def counted(backend: Backend, outcome: str) -> float:
    """How many requests for the model have ended so."""
    (family,) = backend.gateway.metrics.requests.collect()
    return sum(
        s.value
        for s in family.samples
        if s.name.endswith("_total") and (s.labels["model"], s.labels["outcome"]) == (A, outcome)
    )


async def crowd(backend: Backend, **fields: Any) -> list[asyncio.Task[Answer]]:
    """All of them ask at once, and are aboard."""
    tasks = [asking(backend, **fields) for _ in range(NUM_ASKING)]
    await aboard(backend, NUM_ASKING - 1)
    return tasks


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hundred_who_ask_the_same_cost_one_generation(
    backend: Backend, stream: bool
) -> None:
    """And one place, where two are served and four may wait; each has an answer of its own."""
    engine = await backend.serving()
    engine.first_byte.clear()
    tasks = await crowd(backend, stream=stream)
    assert backend.admission.num_in_flight == 1
    engine.first_byte.set()
    answers = await asyncio.gather(*tasks)
    assert len(engine.bodies) == 1
    assert {(a.status, a.text) for a in answers} == {(200, TEXT)}
    assert sorted(a.label for a in answers) == ["miss"] + ["shared"] * (NUM_ASKING - 1)
    assert len({a.value["id"] for a in answers}) == NUM_ASKING
    assert [a.raw for a in answers if a.label == "miss"] == [engine.last_answer]
    assert (await ask(backend, stream=stream)).label == "hit"


async def test_a_hundred_who_ask_for_what_is_kept_cost_no_generation(backend: Backend) -> None:
    """All of them hit."""
    engine = await backend.serving()
    await ask(backend)
    answers = await asyncio.gather(*[ask(backend) for _ in range(NUM_ASKING)])
    assert {a.label for a in answers} == {"hit"}
    assert len(engine.bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_one_s_leaving_does_not_stop_the_others(
    backend: Backend, stream: bool
) -> None:
    """The generation is nobody's own; it goes on in the same engine request."""
    engine = await backend.serving()
    gate = engine.next_token if stream else engine.first_byte
    gate.clear()
    first = asking(backend, stream=stream)
    await until(lambda: engine.num_running)
    others = [asking(backend, stream=stream) for _ in range(3)]
    await aboard(backend, 3)
    await leave(first)
    gate.set()
    assert [(await task).text for task in others] == [TEXT] * 3
    assert len(engine.bodies) == 1
    assert engine.aborted.locked()  # nothing was aborted
    assert (await ask(backend, stream=stream)).label == "hit"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_one_s_leaving_aborts_the_generation(backend: Backend, stream: bool) -> None:
    """Within the time that a request alone takes, and the next one begins anew."""
    engine = await backend.serving()
    gate = engine.next_token if stream else engine.first_byte
    gate.clear()
    tasks = await crowd(backend, stream=stream)
    for task in tasks:
        await leave(task)
    await is_aborted(engine)
    await backend.idle()
    gate.set()
    answer = await ask(backend, stream=stream)
    assert (answer.label, answer.text) == ("miss", TEXT)
    assert len(engine.bodies) == 2


async def test_leaving_the_queue_together_is_reported(backend: Backend) -> None:
    """No switch is started for a crowd that has gone."""
    tasks = await crowd(backend)
    news = await backend.switchboard.told(lambda news: A in news.waiting)
    assert news.waiting[A].num_requests == 1
    for task in tasks:
        await leave(task)
    await backend.switchboard.told(lambda news: not news.waiting)


async def test_who_comes_late_gets_the_stream_from_its_beginning(backend: Backend) -> None:
    """What has gone by is sent at once, the rest as it comes."""
    engine = await backend.serving()
    engine.next_token.clear()
    first = asking(backend, stream=True)
    await until(lambda: engine.last_answer)
    body = {"model": A, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    async with backend.client.post(CHAT, json=body | {"stream": True}) as late:
        async with asyncio.timeout(60):
            head = await late.content.readuntil(b"\n\n")
        assert b'"role":"assistant"' in head
        engine.next_token.set()
        stream = check(late.headers["content-type"], head + await late.read())
    assert stream.texts == {0: (await first).text} == {0: TEXT}


async def test_who_does_not_read_does_not_hold_the_others(backend: Backend) -> None:
    """The others are served and the place is free while one reads nothing."""
    engine = await backend.serving()
    engine.next_token.clear()
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": A, "messages": messages, "temperature": 0, "stream": True})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    await backend.raw(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    await until(lambda: engine.num_running)
    other = asking(backend, stream=True)
    await aboard(backend, 1)
    engine.next_token.set()
    assert (await other).text == TEXT
    await backend.idle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.DEAD, Fault.BAD_REQUEST])
async def test_a_failure_is_everybody_s_and_is_tried_once(
    backend: Backend, fault: Fault, stream: bool
) -> None:
    """What killed an engine is not sent a hundred times; the next one to ask tries again."""
    engine = await backend.serving()
    engine.fault = fault
    engine.first_byte.clear()
    tasks = await crowd(backend, stream=stream)
    engine.first_byte.set()
    answers = await asyncio.gather(*tasks)
    assert len(engine.bodies) == 1
    codes = {(a.status, a.code) for a in answers}
    is_bad = fault is Fault.BAD_REQUEST
    begun = stream and fault is Fault.RESET  # only an event can tell
    expected = (400, None) if is_bad else (200 if begun else 503, "engine_restarting")
    assert codes == {expected}
    await until(lambda: counted(backend, "complete") + counted(backend, "error") == NUM_ASKING)
    assert counted(backend, "error") == NUM_ASKING
    engine.fault = None
    assert (await ask(backend, stream=stream)).text == TEXT


@pytest.mark.parametrize("stream", [False, True])
async def test_who_came_later_does_not_share_the_first_one_s_lateness(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """`X-Max-Wait` runs from each one's own arrival: the others ask once more, together."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.05)
    patient = {"X-Max-Wait": "1.5"}
    first = asking(backend, headers=patient, stream=stream)
    await until(lambda: backend.admission.num_queued)
    later = time.monotonic() + 0.7
    await until(lambda: time.monotonic() > later)
    others = [asking(backend, headers=patient, stream=stream) for _ in range(3)]
    await aboard(backend, 3)
    assert (await first).code == "model_not_resident"
    await until(lambda: backend.admission.num_queued == 1)
    engine = await backend.serving()
    assert [(await task).text for task in others] == [TEXT] * 3
    assert len(engine.bodies) == 1


async def test_who_asks_on_other_terms_is_served_by_itself(backend: Backend) -> None:
    """`X-Switch: never` is refused at once, though somebody waits for the same answer."""
    await backend.serving(B, epoch=1)
    waiting = asking(backend)
    await until(lambda: backend.admission.num_queued)
    never = await ask(backend, headers={"X-Switch": "never"})
    assert (never.status, never.code) == (503, "model_not_resident")
    await backend.serving(A, epoch=2)
    assert (await waiting).text == TEXT


async def test_waiting_streams_all_get_heartbeats(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who joined is kept alive as well, and a replay holds none of them."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    body = {"model": A, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    body |= {"stream": True}
    async with (
        backend.client.post(CHAT, json=body) as first,
        backend.client.post(CHAT, json=body) as second,
    ):
        heads = [await r.content.readline() for r in (first, second)]
        assert all(head.startswith(b": waiting for") for head in heads)
        await backend.serving()
        for response, head in zip((first, second), heads, strict=True):
            assert check(response.headers["content-type"], head + await response.read()).is_done
    hit = await ask(backend, stream=True)
    assert hit.label == "hit"
    assert b": waiting" not in hit.raw


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_at_any_moment_leaves_nothing_behind(backend: Backend, stream: bool) -> None:
    """The only client goes after every number of steps of the loop that a miss takes."""
    engine = await backend.serving()
    for num_steps in range(1000):
        task = asking(backend, stream=stream, max_tokens=num_steps + 1)
        for _ in range(num_steps):
            await asyncio.sleep(0)
        if task.done():
            break
        await leave(task)
        await backend.idle()
        await until(lambda: not engine.num_running, deadline_s=2)
        await until(lambda: not len(backend.gateway.cache.generations), deadline_s=2)
    assert num_steps > 10
    assert (await task).text == TEXT


# --- the shared generation itself ---


async def nothing(*_: object) -> None:
    return None


async def test_an_exception_of_the_generation_reaches_every_subscriber() -> None:
    """A mistake of ours is a 500 for each, not a request that hangs."""

    async def broken() -> Any:
        raise ZeroDivisionError

    generations = SharedGenerations()
    generation, is_first = generations.join(
        "k", lambda: SharedGeneration(nothing, broken, nothing, nothing)
    )
    same, is_second = generations.join("k", lambda: pytest.fail("there is one"))
    assert (same, is_first, is_second) == (generation, True, False)
    with generation.subscribed(), generation.subscribed():
        assert await generation.found() is None
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await generation.messages_after(0)
    await until(lambda: not len(generations))


async def test_an_abandoned_generation_is_not_joined() -> None:
    """It is about to be aborted."""
    is_told = asyncio.Event()

    class Leaving:
        error = None

        async def answer(self, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "http.disconnect"
            is_told.set()

    async def make() -> Leaving:
        return Leaving()

    def new() -> SharedGeneration:
        return SharedGeneration(nothing, make, nothing, nothing)

    generations = SharedGenerations()
    left, _ = generations.join("k", new)
    with left.subscribed():
        assert await left.found() is None
    other, is_first = generations.join("k", new)
    assert is_first
    assert other is not left
    async with asyncio.timeout(60):
        await is_told.wait()
    with other.subscribed():
        assert await other.found() is None
    await until(lambda: not len(generations))


async def test_an_abandoned_look_up_starts_no_generation() -> None:
    """The client left while the store was slow."""
    looking = asyncio.Event()

    async def look_up() -> None:
        await looking.wait()

    generations = SharedGenerations()
    generation, _ = generations.join(
        "k",
        lambda: SharedGeneration(look_up, lambda: pytest.fail("it is made"), nothing, nothing),
    )
    with generation.subscribed():
        pass
    looking.set()
    await until(lambda: not len(generations))
