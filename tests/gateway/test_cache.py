"""Answers given again: which, to whom, and without which switch."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from deployments.residency import State
from deployments.settings import Settings
from tests.gateway.cached import ask, with_cache
from tests.gateway.conftest import A, B, Backend, until
from tests.gateway.fake_engine import TEXT, TOKENS, Fault
from tests.gateway.sse import check

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = (Fault.RESET, Fault.RESET_BEFORE_ANSWER, Fault.ABORT, Fault.BAD_REQUEST, Fault.DEAD)


@pytest.fixture(params=["memory://"])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.param


@pytest.fixture
def changes() -> dict[str, Any]:
    """What a test sets of the cache; overridden by `@pytest.mark.parametrize`."""
    return {}


@pytest.fixture
def settings(
    settings: Settings, tmp_path: Path, url: str | None, changes: dict[str, Any]
) -> Settings:
    return with_cache(settings, tmp_path, url, **changes)


async def stats(backend: Backend) -> dict[str, Any]:
    async with backend.client.get("/admin/cache") as response:
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
        return answer


async def clear(backend: Backend) -> Any:
    async with backend.client.delete("/admin/cache") as response:
        assert response.status == 200
        return (await response.json())["deleted"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("url", ["memory://", "disk://"], indirect=True)
async def test_a_repeated_question_is_answered_without_the_engine(
    backend: Backend, tmp_path: Path, stream: bool
) -> None:
    """As a new answer: same text and usage, a new id and time, and headers that say so."""
    engine = await backend.serving(epoch=7)
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    first = await ask(backend, **options)
    second = await ask(backend, **options)
    third = await ask(backend, **options)
    assert len(engine.bodies) == 1
    assert first.raw == engine.last_answer
    assert [a.label for a in (first, second, third)] == ["miss", "hit", "hit"]
    assert first.text == second.text == third.text == TEXT
    assert len({a.value["id"] for a in (first, second, third)}) == 3
    assert second.value["id"].startswith("chatcmpl-")
    assert second.value["created"] > first.value["created"]
    assert second.headers["Content-Type"] == first.headers["Content-Type"]
    assert second.headers["X-Model"] == A
    assert "X-Epoch" not in second.headers
    assert int(second.headers["Age"]) < 60
    if stream:
        assert check("text/event-stream", second.raw).usage
    else:
        assert second.value["usage"]["completion_tokens"] == len(TOKENS)


@pytest.mark.parametrize("intent", ["never", "wait", "force"])
@pytest.mark.parametrize("state", [State.SERVING, State.LOADING, State.LOST])
async def test_a_hit_for_a_model_that_does_not_serve_costs_no_switch(
    backend: Backend, intent: str, state: State
) -> None:
    """Whatever serves or is under way, and whatever the client would have done about it."""
    engine = await backend.serving(A, epoch=1)
    await ask(backend)
    await backend.serving(B, epoch=2)
    await backend.show(state=state)
    num_reports = len(backend.switchboard.reports)
    answer = await ask(backend, headers={"X-Switch": intent})
    assert (answer.status, answer.text) == (200, TEXT)
    assert answer.label == "hit; switch=avoided"
    assert answer.headers["X-Model"] == A
    assert len(engine.bodies) == 1
    assert backend.switchboard.switches == []
    assert not any(report.waiting for report in backend.switchboard.reports[num_reports:])
    assert (await stats(backend))["switches_avoided"] == 1


async def test_an_embedding_that_was_made_costs_no_switch(backend: Backend) -> None:
    """It needs no temperature, and another task of the same model serves."""
    body = {"model": "qwen-vl", "input": "hi"}
    engine = await backend.engine("qwen-vl")
    await backend.show(state=State.SERVING, holder="qwen-vl:embed", endpoint=engine.path, epoch=2)
    answers = []
    for holder in ("qwen-vl:embed", "qwen-vl:embed", "qwen-vl"):
        await backend.show(holder=holder)
        async with backend.client.post("/v1/embeddings", json=body) as response:
            assert response.headers["X-Model"] == "qwen-vl"
            answers.append((response.headers["X-Cache"], (await response.json())["data"]))
    assert [label for label, _ in answers] == ["miss", "hit", "hit; switch=avoided"]
    assert answers[0][1] == answers[1][1] == answers[2][1]
    assert len(engine.bodies) == 1


async def test_a_miss_for_a_model_that_does_not_serve_waits_as_ever(backend: Backend) -> None:
    """The cache changes nothing for who is not in it."""
    await backend.serving(B, epoch=1)
    never = await ask(backend, headers={"X-Switch": "never"})
    assert (never.status, never.code) == (503, "model_not_resident")
    waiting = asyncio.create_task(ask(backend))
    await backend.switchboard.told(lambda news: A in news.waiting)
    await backend.serving(A, epoch=2)
    assert (await waiting).text == TEXT


async def test_spelling_does_not_count(backend: Backend) -> None:
    """Another order, other white space, another user of the same caller."""
    engine = await backend.serving()
    await ask(backend, max_tokens=16, top_p=1)
    again = await ask(backend, top_p=1.0, max_tokens=16, user="x", temperature=0.0)
    assert again.label == "hit"
    assert len(engine.bodies) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"max_tokens": 5},
        {"seed": 1},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"stream": True},
        {"model": B},
        {"stop": ["x"]},
    ],
    ids=str,
)
async def test_another_question_is_not_a_hit(backend: Backend, other: dict[str, Any]) -> None:
    """Also the same one to another model, or as a stream."""
    await backend.serving(A)
    await ask(backend)
    await backend.serving(other.get("model", A), epoch=2)
    assert (await ask(backend, **other)).label == "miss"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None},
        {"temperature": 0.5},
        {"temperature": 0.5, "seed": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_may_come_out_otherwise_is_asked_again(
    backend: Backend, fields: dict[str, Any], stream: bool
) -> None:
    """Chance, and what lies elsewhere; the bytes pass as ever."""
    engine = await backend.serving()
    for _ in range(2):
        answer = await ask(backend, stream=stream, **fields)
        assert answer.label == "uncacheable"
        assert answer.raw == engine.last_answer
    assert len(engine.bodies) == 2


async def test_several_choices_are_asked_again(backend: Backend) -> None:
    """Two choices at temperature 0 are a client's mistake, not ours to keep."""
    engine = await backend.serving()
    for _ in range(2):
        async with await backend.chat(n=2, temperature=0) as response:
            assert response.headers["X-Cache"] == "uncacheable"
    assert len(engine.bodies) == 2


@pytest.mark.parametrize("changes", [{"seeded": True}])
async def test_a_seed_is_enough_where_the_settings_say_so(backend: Backend) -> None:
    """And it is part of the question."""
    await backend.serving()
    asked = [{"seed": 1}, {"seed": 1}, {"seed": 2}]
    labels = [(await ask(backend, temperature=0.5, **seed)).label for seed in asked]
    assert labels == ["miss", "hit", "miss"]


async def test_a_client_can_do_without(backend: Backend) -> None:
    """`X-Cache: off` neither reads nor writes."""
    engine = await backend.serving()
    off = {"X-Cache": "off"}
    assert (await ask(backend, headers=off)).label == "off"
    assert (await ask(backend)).label == "miss"
    assert (await ask(backend, headers=off)).label == "off"
    assert (await ask(backend, headers={"X-Cache": "On"})).label == "hit"
    assert len(engine.bodies) == 3
    wrong = await ask(backend, headers={"X-Cache": "miss"})
    assert wrong.status == 400
    assert wrong.value["error"]["param"] == "X-Cache"


@pytest.mark.parametrize("url", [None], indirect=True)
async def test_no_address_is_no_cache(backend: Backend) -> None:
    """And the admin's routes answer all the same."""
    engine = await backend.serving()
    assert [(await ask(backend)).label for _ in range(2)] == ["off", "off"]
    assert len(engine.bodies) == 2
    assert (await stats(backend))["state"] == "off"
    assert await clear(backend) == 0


async def test_callers_do_not_see_each_other_s_answers(backend: Backend) -> None:
    """Not even that somebody has asked."""
    await backend.serving()
    callers = [{"Authorization": f"Bearer {name}"} for name in "xyx"]
    labels = [(await ask(backend, headers=caller)).label for caller in callers]
    assert labels == ["miss", "miss", "hit"]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [(fault, stream) for fault in Fault for stream in (False, True) if stream or fault in PLAIN],
)
async def test_failures_are_not_kept(backend: Backend, fault: Fault, stream: bool) -> None:
    """Whatever came in place of a whole answer, the next one asks the engine."""
    engine = await backend.serving()
    engine.fault = fault
    body = {"model": A, "messages": HELLO, "temperature": 0, "stream": stream}
    async with backend.client.post("/v1/chat/completions", json=body) as response:
        assert b'"error"' in await response.read()
    engine.fault = None
    again = await ask(backend, messages=HELLO, stream=stream)
    assert (again.label, again.text) == ("miss", TEXT)


async def test_a_cut_answer_is_not_kept(backend: Backend) -> None:
    """A drain deadline ended it."""
    engine = await backend.serving()
    engine.next_token.clear()
    cut = asyncio.create_task(ask(backend, stream=True))
    await until(lambda: engine.num_running)
    await backend.cut()
    assert (await cut).code == "model_switching"
    engine.next_token.set()
    await backend.serve(engine, epoch=2)
    assert (await ask(backend, stream=True)).label == "miss"


async def test_other_weights_are_another_model(backend: Backend, settings: Settings) -> None:
    """What is loaded has read the old files; once it is loaded again, the new ones count."""
    spec = settings.models[A]
    folder = settings.home / "models" / spec.checkpoint.removeprefix("demo/")
    await backend.serving(A, epoch=1)
    assert (await ask(backend)).label == "miss"
    os.utime(folder / "config.json", ns=(1, 1))
    assert (await ask(backend)).label == "hit"
    await backend.serving(B, epoch=2)
    other = await ask(backend, headers={"X-Switch": "never"})
    assert other.code == "model_not_resident"
    await backend.serving(A, epoch=3)
    assert (await ask(backend)).label == "miss"
    await backend.serving(B, epoch=4)
    assert (await ask(backend)).label == "hit; switch=avoided"


async def test_without_a_checkpoint_nothing_is_kept(backend: Backend, settings: Settings) -> None:
    """Nobody can tell whose answers they would be."""
    spec = settings.models[A]
    config = settings.home / "models" / spec.checkpoint.removeprefix("demo/") / "config.json"
    config.unlink()
    await backend.serving()
    assert [(await ask(backend)).label for _ in range(2)] == ["uncacheable", "uncacheable"]


@pytest.mark.parametrize("changes", [{"max_value_bytes": 600}])
async def test_an_answer_that_is_too_large_is_not_kept(backend: Backend) -> None:
    """It passes all the same, and is counted."""
    await backend.serving()
    for _ in range(2):
        assert (await ask(backend, stream=True)).label == "miss"
    assert (await stats(backend))["too_large"] == 2
    assert [(await ask(backend)).label for _ in range(2)] == ["miss", "hit"]


@pytest.mark.parametrize("changes", [{"ttl_s": 0.001}])
async def test_an_answer_that_is_too_old_is_made_anew(backend: Backend) -> None:
    """After `ttl_s`."""
    engine = await backend.serving()
    async with asyncio.timeout(60):
        while len(engine.bodies) < 2:
            await ask(backend)


@pytest.mark.parametrize("url", ["memory://", "disk://"], indirect=True)
async def test_an_admin_clears_it(backend: Backend) -> None:
    """And hears how many answers were kept."""
    await backend.serving()
    await ask(backend)
    await ask(backend, max_tokens=1)
    await until(lambda: backend.gateway.cache.counts.stored == 2)
    assert await clear(backend) == 2
    assert (await ask(backend)).label == "miss"


async def test_an_answer_being_made_is_forgotten_too(backend: Backend) -> None:
    """Who clears it because the answers are wrong does not want this one either."""
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = asyncio.create_task(ask(backend))
    await until(lambda: engine.num_running)
    assert await clear(backend) == 0
    anew = asyncio.create_task(ask(backend))
    await until(lambda: engine.num_running == 2)
    engine.first_byte.set()
    assert [(await asking).label, (await anew).label] == ["miss", "miss"]
    assert (await stats(backend))["stored"] == 1


@pytest.mark.parametrize("url", ["memory://", "disk://"], indirect=True)
async def test_stats_tell_what_it_did(backend: Backend) -> None:
    """Everything that was asked is in exactly one count."""
    await backend.serving()
    for fields in ({}, {}, {"temperature": 1}, {"max_tokens": 5}):
        await ask(backend, **fields)
    await ask(backend, headers={"X-Cache": "off"})
    await until(lambda: backend.gateway.cache.counts.stored == 2)
    await until(lambda: not len(backend.gateway.cache.generations))
    told = await stats(backend)
    assert told["url"].startswith(("memory://", "disk:///"))
    assert told["bytes"] > 0
    asked = ("hits", "misses", "shared", "uncacheable", "off")
    assert [told[name] for name in asked] == [1, 2, 0, 1, 1]
    assert (told["state"], told["stored"], told["entries"]) == ("ok", 2, 2)
    assert (told["errors"], told["garbage"], told["in_flight"]) == (0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hit_shows_on_the_metrics_page_as_no_work(backend: Backend, stream: bool) -> None:
    """One miss whose tokens count, one hit whose do not."""
    await backend.serving()
    for _ in range(2):
        await ask(
            backend, stream=stream, stream_options={"include_usage": True} if stream else None
        )
    async with backend.client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    for result in ("miss", "hit"):
        assert f'llm_backend_cache_lookups_total{{model="{A}",result="{result}"}} 1.0' in lines
    assert f'llm_backend_generated_tokens_total{{model="{A}"}} 5.0' in lines
    assert f'llm_backend_queue_wait_seconds_count{{model="{A}"}} 1.0' in lines
