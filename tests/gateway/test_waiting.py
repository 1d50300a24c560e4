"""Requests that wait: for a switch, for a place in service, or not at all."""

import asyncio
import resource
import time

import pytest

from deployments.residency import State
from tests.gateway.conftest import A, B, Backend, error_of, until
from tests.gateway.fake_engine import TEXT
from tests.gateway.sse import check


async def test_a_request_waits_for_its_model(backend: Backend) -> None:
    """Its own model's engine answers it, under the new epoch."""
    old = await backend.serving(A, epoch=1)
    asking = asyncio.create_task(backend.chat(model=B))
    news = await backend.switchboard.told(lambda news: B in news.waiting)
    assert news.waiting[B].num_requests == 1
    await backend.show(state=State.DRAINING)
    await backend.show(state=State.LOADING, holder=B, epoch=2)
    new = await backend.serving(B, epoch=2)
    async with await asking as response:
        assert response.status == 200
        assert response.headers["X-Model"] == B
        assert response.headers["X-Epoch"] == "2"
        assert await response.read() == new.last_answer
    assert not old.bodies


@pytest.mark.parametrize("state", [s for s in State if s is not State.SERVING])
async def test_nobody_is_sent_to_an_engine_that_does_not_serve(
    backend: Backend, state: State
) -> None:
    """Also a request for the very model that is loading or draining waits."""
    engine = await backend.engine()
    await backend.show(state=state, holder=A, endpoint=engine.path, epoch=4)
    asking = backend.asking()
    await until(lambda: backend.admission.num_queued)
    assert not engine.bodies
    await backend.serve(engine, epoch=5)
    assert (await asking)[0] == 200


async def test_a_waiting_stream_gets_heartbeats(backend: Backend) -> None:
    """The first comes within two seconds, and the answer follows in the same stream."""
    began = time.monotonic()
    async with await backend.chat(stream=True) as response:
        head = await response.content.readline()
        assert time.monotonic() - began < 20  # on a machine that does other things
        assert head.startswith(b": ")
        await backend.serving(A)
        stream = check(response.headers["content-type"], head + await response.read())
    assert stream.num_heartbeats == 1
    assert stream.is_done
    assert stream.texts == {0: TEXT}


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_load_failure_while_waiting_is_told_with_its_cause(backend: Backend) -> None:
    """503 for those without a byte yet, one error event for a stream that has begun."""
    plain = backend.asking()
    async with await backend.chat(stream=True) as response:  # the head is there: it has begun
        await until(lambda: backend.admission.num_queued == 2)
        await backend.fail(A, seq=1, retry_after_s=15)
        stream = check(response.headers["content-type"], await response.read())
    assert stream.num_heartbeats
    assert stream.error
    status, body = await plain
    assert status == 503
    for error in (stream.error, error_of(body)):
        assert error["code"] == "model_load_failed"
        assert "weights are cut short" in error["message"]


async def test_a_load_failure_is_told_only_to_its_own_model_s_waiters(backend: Backend) -> None:
    """Who waits for another model goes on waiting."""
    for_a, for_b = backend.asking(), backend.asking(model=B)
    await until(lambda: backend.admission.num_queued == 2)
    await backend.fail(B, seq=1)
    assert (await for_b)[0] == 503
    assert not for_a.done()
    await backend.serving(A)
    assert (await for_a)[0] == 200


async def test_a_fresh_load_failure_is_told_at_once(backend: Backend) -> None:
    """Within its retry time nobody waits for what just failed; Retry-After says how long."""
    await backend.fail(A, seq=1, retry_after_s=15)
    async with await backend.chat() as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "15"
        assert error_of(await response.read())["code"] == "model_load_failed"
    async with await backend.chat(stream=True) as response:
        assert response.status == 503


async def test_an_old_load_failure_is_not_held_against_a_new_request(backend: Backend) -> None:
    """Past its retry time a request waits again; only a newer failure ends it."""
    await backend.fail(A, seq=1, retry_after_s=0)
    asking = backend.asking()
    await until(lambda: backend.admission.num_queued)
    await backend.show(state=State.LOADING, holder=A, epoch=1)
    assert not asking.done()
    await backend.fail(A, seq=2, retry_after_s=0)
    assert (await asking)[0] == 503


async def test_a_failure_after_a_restart_of_the_switchboard_counts_as_new(backend: Backend) -> None:
    """A new boot counts its failures from one again: the waiter must still learn of it."""
    await backend.fail(A, seq=3, retry_after_s=0)
    asking = backend.asking()
    await until(lambda: backend.admission.num_queued)
    await backend.show(boot="boot-2", failures={})
    await backend.fail(A, seq=1)
    async with asyncio.timeout(60):
        assert (await asking)[0] == 503


async def test_a_full_queue_refuses_with_retry_after(backend: Backend) -> None:
    """The fifth of four places: 429, at once, with a time to come back; the others are served."""
    waiting = [backend.asking() for _ in range(4)]
    await until(lambda: backend.admission.num_queued == 4)
    for stream in (False, True):
        async with await backend.chat(stream=stream) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) >= 1
            assert error_of(await response.read())["code"] == "queue_full"
    await backend.serving()
    assert [(await asking)[0] for asking in waiting] == [200] * 4


async def test_requests_are_served_in_order_and_never_too_many(backend: Backend) -> None:
    """Two in service, the rest first come first served, one for one."""
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = []
    for number in range(6):
        asking.append(backend.asking(seed=number))
        await until(lambda: backend.admission.num_in_flight + backend.admission.num_queued > number)  # noqa: B023
    assert backend.admission.num_in_flight == 2
    assert backend.admission.num_queued == 4
    engine.first_byte.set()
    assert [(await task)[0] for task in asking] == [200] * 6
    assert [f'"seed": {n}'.encode() in body for n, body in enumerate(engine.bodies)] == [True] * 6
    assert engine.max_running <= 2


async def test_a_newcomer_does_not_pass_those_who_wait(backend: Backend) -> None:
    """Also when a place is free just as it comes: whoever waits for the model goes first."""
    engine = await backend.serving()
    engine.first_byte.clear()
    running = [backend.asking(seed=n) for n in range(2)]
    await until(lambda: engine.num_running == 2)
    waiting = [backend.asking(seed=2)]
    await until(lambda: backend.admission.num_queued == 1)
    engine.first_byte.set()
    waiting.append(backend.asking(seed=3))
    assert [(await task)[0] for task in running + waiting] == [200] * 4
    assert b'"seed": 3' in engine.bodies[-1]


@pytest.mark.parametrize("limits", [{"max_in_service": 10, "max_queued": 50}])
async def test_of_a_thousand_at_once_exactly_limit_and_queue_are_admitted(
    backend: Backend,
) -> None:
    """The rest is refused while these still wait, and afterwards every permit is back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = [backend.asking() for _ in range(1000)]
    await until(lambda: sum(task.done() for task in asking) >= 940, deadline_s=60)
    assert backend.admission.num_in_flight == 10
    assert backend.admission.num_queued == 50
    await until(lambda: engine.num_running == 10)
    engine.first_byte.set()
    statuses = [(await task)[0] for task in asking]
    assert (statuses.count(200), statuses.count(429)) == (60, 940)
    assert len(engine.bodies) == 60
    assert engine.max_running == 10
    await backend.idle()


@pytest.mark.parametrize("num_clients", [1, 2, 5, 10, 20, 50])
@pytest.mark.parametrize("limits", [{"max_in_service": 10, "max_queued": 256}])
async def test_any_concurrency_is_served_within_the_limit(
    backend: Backend, num_clients: int
) -> None:
    """At most ten with the engine, the rest waits its turn, and all are answered."""
    engine = await backend.serving()
    plain = [backend.asking() for _ in range(num_clients)]
    streams = [backend.streaming() for _ in range(num_clients)]
    assert {(await task)[0] for task in plain} == {200}
    assert all([(await task).is_done for task in streams])
    assert engine.max_running <= 10
