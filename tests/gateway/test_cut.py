"""The drain deadline: what is in flight ends, and says why."""

import asyncio
import time
from dataclasses import replace

import pytest

from deployments.residency import State
from tests.gateway.conftest import A, B, Backend, error_of, until
from tests.gateway.sse import check


@pytest.mark.parametrize("limits", [{"max_in_service": 10}])
async def test_a_drain_lets_streams_end_until_the_deadline_then_cuts(backend: Backend) -> None:
    """Of ten streams those that end in time are whole; the others end with one error event."""
    engine = await backend.serving()
    engine.next_token.clear()
    engine.slow_token.clear()
    whole = [backend.streaming() for _ in range(5)]
    cut = [backend.streaming(user="slow") for _ in range(5)]
    await until(lambda: engine.num_running == 10)
    await backend.show(state=State.DRAINING)
    engine.next_token.set()
    for stream in [await task for task in whole]:
        assert stream.is_done
    assert not any(task.done() for task in cut)
    began = time.monotonic()
    await backend.cut()
    for stream in [await task for task in cut]:
        assert stream.error
        assert stream.error["code"] == "model_switching"
    assert time.monotonic() - began < 20
    await backend.switchboard.told(lambda news: news.closed_epoch >= 1 and not news.in_flight)
    for _ in range(5):
        await engine.aborted.acquire()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_before_the_first_byte_is_503(backend: Backend, stream: bool) -> None:
    """Nothing was sent yet, so the status can say it, with a time to come back."""
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = asyncio.create_task(backend.chat(stream=stream))
    await until(lambda: engine.num_running)
    await backend.cut()
    async with await asking as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert error_of(await response.read())["code"] == "model_switching"
    await engine.aborted.acquire()


async def test_a_cut_spares_those_who_wait(backend: Backend) -> None:
    """In the queue for the old, the new and a third model: each is served by its own, later."""
    old = await backend.serving(A)
    old.first_byte.clear()
    running = [backend.asking() for _ in range(2)]
    await until(lambda: old.num_running == 2)
    for_a, for_b = backend.asking(), backend.asking(model=B)
    await until(lambda: backend.admission.num_queued == 2)
    await backend.cut()
    assert {(await task)[0] for task in running} == {503}
    await backend.show(state=State.LOADING, holder=B, epoch=2)
    new = await backend.serving(B, epoch=2)
    assert (await for_b)[0] == 200
    assert not for_a.done()
    again = await backend.serving(A, epoch=3)
    assert (await for_a)[0] == 200
    assert [len(engine.bodies) for engine in (old, new, again)] == [2, 1, 1]


async def test_a_cut_of_one_epoch_spares_another(backend: Backend) -> None:
    """A late cut of an epoch that is over touches nobody."""
    engine = await backend.serving(epoch=2)
    engine.first_byte.clear()
    asking = backend.asking()
    await until(lambda: engine.num_running)
    await backend.show(state=State.DRAINING, is_cut=True, epoch=1)
    engine.first_byte.set()
    assert (await asking)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_at_any_moment_leaves_nothing_behind(backend: Backend, stream: bool) -> None:
    """The cut comes after every number of steps of the loop that a request takes: before it is
    admitted it waits for the next epoch, then it is cut or complete, and never both."""
    engine = await backend.serving(epoch=1)
    endings: set[str] = set()
    view = backend.switchboard.view
    for num_steps in range(1000):
        asking = asyncio.create_task(backend.chat(stream=stream))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        is_over = asking.done() and not backend.admission.num_in_flight
        cut = replace(view, epoch=num_steps + 1, state=State.DRAINING, is_cut=True)
        backend.admission.apply(cut)
        await until(lambda: asking.done() or backend.admission.num_queued)  # noqa: B023
        await until(lambda: not backend.admission.num_in_flight)
        view = replace(view, epoch=num_steps + 2)
        backend.admission.apply(view)
        async with await asking as response:
            raw = await response.read()
            if response.status == 503:
                endings.add(error_of(raw)["code"])
            elif stream:
                answer = check(response.headers["content-type"], raw)
                endings.add(answer.error["code"] + " event" if answer.error else "complete")
            else:
                assert raw == engine.last_answer
                endings.add("complete")
        await backend.idle()
        if is_over:
            break
    assert is_over
    assert endings <= {"complete", "model_switching", "model_switching event"}
    assert {"complete", "model_switching"} <= endings
