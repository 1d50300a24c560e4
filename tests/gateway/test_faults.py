"""Engines that die, hang or are not there; a Switchboard that is away."""

import asyncio
import os
import time

import pytest

from deployments.residency import State
from tests.gateway.conftest import A, B, Backend, error_of, until
from tests.gateway.fake_engine import DYING, TEXT, Fault
from tests.gateway.sse import check


@pytest.mark.parametrize("fault", DYING)
@pytest.mark.parametrize("is_bytewise", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_of_a_dying_engine_ends_with_one_error_event(
    backend: Backend, fault: Fault, is_bytewise: bool, n: int
) -> None:
    """However the engine goes, politely or not: no silent end, no `[DONE]`."""
    engine = await backend.serving()
    engine.fault, engine.is_bytewise = fault, is_bytewise
    stream = await backend.streaming(n=n)
    assert not stream.is_done
    assert stream.error
    assert stream.error["code"] == "engine_restarting"
    assert "EngineCore" not in stream.error["message"]
    assert all(TEXT.startswith(text) for text in stream.texts.values())
    await backend.idle()


@pytest.mark.parametrize("is_bytewise", [False, True])
async def test_the_engine_s_own_error_event_is_the_last(
    backend: Backend, is_bytewise: bool
) -> None:
    """vLLM ends also these with `[DONE]`; a client must not take the stream for complete."""
    engine = await backend.serving()
    engine.fault, engine.is_bytewise = Fault.ERROR_EVENT, is_bytewise
    async with await backend.chat(stream=True) as response:
        raw = await response.read()
    assert b"[DONE]" not in raw.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    assert raw.count(b'"error"') == 1
    assert b"the grammar is broken" in raw


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_BEFORE_ANSWER, Fault.ABORT, Fault.DEAD])
async def test_a_plain_answer_of_a_dying_engine_is_503(backend: Backend, fault: Fault) -> None:
    """Never the engine's own 500, never a cut answer that looks whole."""
    engine = await backend.serving()
    engine.fault = fault
    async with await backend.chat() as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        error = error_of(await response.read())
    assert error["code"] == "engine_restarting"
    assert "EngineCore" not in error["message"]


@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE_ANSWER, Fault.DEAD])
async def test_an_engine_dead_before_a_stream_begins_is_503(backend: Backend, fault: Fault) -> None:
    """The status is still ours to choose."""
    engine = await backend.serving()
    engine.fault = fault
    status, body = await backend.asking(stream=True)
    assert status == 503
    assert error_of(body)["code"] == "engine_restarting"


@pytest.mark.parametrize(
    ("fault", "code"), [(Fault.BAD_REQUEST, None), (Fault.DEAD, "engine_restarting")]
)
async def test_an_error_after_heartbeats_is_one_event(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, fault: Fault, code: object
) -> None:
    """The 200 is out already: what the engine says can only be an event."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    engine = await backend.engine()
    engine.fault = fault
    async with await backend.chat(stream=True) as response:
        await backend.serve(engine, epoch=1)
        stream = check(response.headers["content-type"], await response.read())
    assert stream.error
    assert stream.error["code"] == code


@pytest.mark.parametrize("stream", [False, True])
async def test_a_missing_engine_s_successor_answers(backend: Backend, stream: bool) -> None:
    """Its socket file is gone: nothing was sent, so the request waits for the next epoch."""
    gone = await backend.serving(epoch=1)
    await gone.stop()
    asking = asyncio.create_task(backend.chat(stream=stream))
    await until(lambda: backend.admission.num_in_flight)
    await backend.show(state=State.LOST)
    await until(lambda: backend.admission.num_queued)
    await backend.show(state=State.LOADING, epoch=2)
    await backend.serving(epoch=2)
    async with await asking as response:
        assert response.status == 200
        assert response.headers["X-Epoch"] == "2"
        await response.read()


async def test_a_stream_that_waits_for_a_dead_engine_s_successor_gets_heartbeats(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the Switchboard has noticed the death: the view still says that it serves."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    gone = await backend.serving(epoch=1)
    await gone.stop()
    async with asyncio.timeout(60), await backend.chat(stream=True) as response:
        head = await response.content.readline()
        assert backend.admission.view is not None
        assert backend.admission.view.state is State.SERVING
        await backend.serving(epoch=2)
        stream = check(response.headers["content-type"], head + await response.read())
    assert stream.num_heartbeats
    assert stream.is_done


async def test_a_socket_nobody_listens_on_is_as_good_as_none(backend: Backend) -> None:
    """The file outlived its engine; also then the successor answers."""
    gone = await backend.serving(epoch=1)
    os.link(gone.path, gone.path + ".kept")
    await gone.stop()
    os.rename(gone.path + ".kept", gone.path)
    asking = backend.asking()
    await until(lambda: backend.admission.num_in_flight)
    await backend.serving(epoch=2)
    assert (await asking)[0] == 200
    os.unlink(gone.path)


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.3}])
async def test_an_engine_that_stays_away_is_503_at_the_deadline(backend: Backend) -> None:
    """Nobody waits for ever for a successor that never comes."""
    engine = await backend.serving()
    await engine.stop()
    status, body = await backend.asking()
    assert status == 503
    assert error_of(body)["code"] == "engine_restarting"


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.3}])
async def test_a_silent_engine_is_cut_at_the_request_s_timeout(backend: Backend) -> None:
    """504 before the first byte, and an error event after it."""
    engine = await backend.serving()
    engine.first_byte.clear()
    for stream in (False, True):
        began = time.monotonic()
        status, body = await backend.asking(stream=stream)
        assert time.monotonic() - began < 20
        assert status == 504
        assert error_of(body)["code"] == "timeout"
        await engine.aborted.acquire()
    engine.first_byte.set()
    engine.next_token.clear()
    cut = await backend.streaming()
    assert cut.error
    assert cut.error["code"] == "timeout"
    await engine.aborted.acquire()


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.3}])
async def test_waiting_ends_at_the_request_s_timeout(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never comes: 504, or an error event where heartbeats went out."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    plain, stream = backend.asking(), backend.streaming()
    status, body = await plain
    assert status == 504
    error = (await stream).error
    assert error
    assert error["code"] == error_of(body)["code"] == "timeout"
    await backend.idle()


async def test_each_epoch_answers_for_itself(backend: Backend) -> None:
    """A stream of the old engine goes on beside the new one's, and each says its epoch."""
    old = await backend.serving(A, epoch=1)
    old.next_token.clear()
    first = asyncio.create_task(backend.chat(stream=True))
    await until(lambda: old.num_running)
    async with await first as streaming:
        assert streaming.headers["X-Epoch"] == "1"
        old.next_token.set()
        assert check(streaming.headers["content-type"], await streaming.read()).is_done
    await backend.serving(B, epoch=2)
    async with await backend.chat(model=B) as response:
        assert (response.headers["X-Model"], response.headers["X-Epoch"]) == (B, "2")
    assert len(old.bodies) == 1


async def test_engines_asked_at_once_do_not_close_each_other(backend: Backend) -> None:
    """A late request to an old engine and the new engine's own: each keeps its connections."""
    old, new = await backend.engine(A), await backend.engine(A)
    sessions = backend.gateway.sessions

    async def ask(endpoint: str) -> int:
        body = {"model": A, "messages": [{"role": "user", "content": "hi"}]}
        async with (
            sessions.to(endpoint) as session,
            session.post("http://engine/v1/chat/completions", json=body) as response,
        ):
            await response.read()
            return response.status

    for _ in range(3):
        asked = [ask(engine.path) for engine in (old, new) * 5]
        assert await asyncio.gather(*asked) == [200] * 10
    assert await ask(new.path) == 200
    assert list(sessions._pools) == [new.path]  # what nobody uses is closed


async def test_serving_goes_on_while_the_switchboard_is_away(backend: Backend) -> None:
    """The last view holds; when the Switchboard is back, the next one is followed."""
    await backend.serving(epoch=1)
    await backend.switchboard.go_away()
    await backend.switchboard.refused(1)
    assert (await backend.asking())[0] == 200
    assert (await backend.streaming()).is_done
    waiting = backend.asking(model=B)
    await until(lambda: backend.admission.num_queued)
    async with backend.client.get("/admin/status") as response:
        assert response.status == 503
        error_of(await response.read())
    await backend.switchboard.refused(3)
    backend.switchboard.is_away = False
    news = await backend.switchboard.told(lambda news: B in news.waiting)
    assert news.closed_epoch == 0
    await backend.serving(B, epoch=2)
    assert (await waiting)[0] == 200
