"""What a request wants done where its model is not resident: `X-Switch`, `X-Max-Wait`, leases."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from deployments.residency import State
from deployments.switchboard.messages import LeaseView
from serve_app.protocol.errors import Unavailable
from tests.gateway.conftest import CHAT, A, B, Backend, error_of, until
from tests.gateway.sse import check

SWITCH = {"id": "sw-1", "from": A, "to": B, "phase": "loading", "estimate_s": 11.2}


def post(backend: Backend, model: str = A, stream: bool = False, **headers: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    named = {"X-" + name.replace("_", "-"): value for name, value in headers.items()}
    return backend.client.post(CHAT, json=body, headers=named)


async def refusal(response: aiohttp.ClientResponse, status: int, code: str) -> str:
    """The message of an error that also says when to come again."""
    assert response.status == status
    assert int(response.headers["Retry-After"]) >= 1
    error = error_of(await response.read())
    assert error["code"] == code
    message: str = error["message"]
    return message


@pytest.mark.parametrize("intent", ["", "no", "Never mind", "wait,force"])
async def test_an_unknown_intent_is_400(backend: Backend, intent: str) -> None:
    """It names the header, and the choices."""
    async with post(backend, Switch=intent) as response:
        assert response.status == 400
        error = error_of(await response.read())
    assert error["param"] == "X-Switch"
    assert "never, wait, force" in error["message"]


@pytest.mark.parametrize("seconds", ["", "-1", "nan", "inf", "1e3", "0x10", "1_0", "a", "٣"])
async def test_a_bad_max_wait_is_400(backend: Backend, seconds: str) -> None:
    """Only plain numbers: what Python would read besides is no number of seconds."""
    async with post(backend, Max_Wait=seconds) as response:
        assert response.status == 400
        assert error_of(await response.read())["param"] == "X-Max-Wait"


@pytest.mark.parametrize("stream", [False, True])
async def test_never_is_refused_at_once_and_told_who_is_resident(
    backend: Backend, stream: bool
) -> None:
    """Nobody switches for it: it is never reported as waiting."""
    await backend.serving(A)
    async with post(backend, B, stream, Switch="never") as response:
        message = await refusal(response, 503, "model_not_resident")
    assert message == f"{B} is not resident; {A} is."
    await backend.show(state=State.LOADING, holder=B, switch=SWITCH)
    async with post(backend, B, stream, Switch="never") as response:
        message = await refusal(response, 503, "model_not_resident")
        assert response.headers["Retry-After"] == "12"
    assert message == f"{B} is not resident; no model is, and a switch to {B} is loading."
    assert not any(report.waiting for report in backend.switchboard.reports)


async def test_never_is_answered_by_the_resident_model(backend: Backend) -> None:
    """Also when it has to wait for a place in service; not past the model's going."""
    engine = await backend.serving(A)
    engine.first_byte.clear()
    running = [asyncio.ensure_future(post(backend, Switch="never")) for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    waiting = asyncio.ensure_future(post(backend, Switch="never"))
    await until(lambda: backend.admission.num_queued)
    await backend.show(state=State.DRAINING)
    async with await waiting as response:
        await refusal(response, 503, "model_not_resident")
    engine.first_byte.set()
    for task in running:
        async with await task as response:
            assert response.status == 200


@pytest.mark.parametrize("seconds", ["0", "0.2"])
async def test_max_wait_ends_the_waiting_for_a_switch(backend: Backend, seconds: str) -> None:
    """503 that names the resident model; with 0 nobody switches for it."""
    await backend.serving(A)
    began = time.monotonic()
    async with post(backend, B, Max_Wait=seconds) as response:
        message = await refusal(response, 503, "model_not_resident")
    assert float(seconds) <= time.monotonic() - began < 20
    assert f"{A} is" in message
    assert any(report.waiting for report in backend.switchboard.reports) == (seconds != "0")
    await backend.idle()


async def test_max_wait_ends_a_stream_with_heartbeats_by_an_event(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is out already."""
    monkeypatch.setattr("serve_app.gateway.relay._HEARTBEAT_S", 0.01)
    async with post(backend, stream=True, Max_Wait="0.2") as response:
        stream = check(response.headers["content-type"], await response.read())
    assert stream.error
    assert stream.error["code"] == "model_not_resident"


async def test_max_wait_for_a_place_in_service_is_429(backend: Backend) -> None:
    """The model is resident, so it would be a lie to say that it is not."""
    engine = await backend.serving(A)
    engine.first_byte.clear()
    running = [backend.asking() for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    async with post(backend, Max_Wait="0.05") as response:
        await refusal(response, 429, "queue_full")
    engine.first_byte.set()
    assert [(await task)[0] for task in running] == [200] * 2


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.2}])
async def test_max_wait_can_not_lift_the_request_s_timeout(backend: Backend) -> None:
    """It only shortens."""
    async with post(backend, Max_Wait="999999") as response:
        assert response.status == 504


@pytest.mark.parametrize("limits", [{"request_timeout_s": 20}])
async def test_max_wait_does_not_end_an_answer(backend: Backend) -> None:
    """It bounds the waiting, not the work."""
    engine = await backend.serving(A)
    engine.next_token.clear()
    async with post(backend, stream=True, Max_Wait="0.05") as response:
        await asyncio.sleep(0.1)
        engine.next_token.set()
        assert check(response.headers["content-type"], await response.read()).is_done


async def test_force_asks_for_a_switch_without_a_drain_and_waits(backend: Backend) -> None:
    """And is told how long the switch took."""
    await backend.serving(A, epoch=1)
    asking = asyncio.ensure_future(post(backend, B, Switch="force"))
    await until(lambda: backend.admission.num_queued)
    assert backend.switchboard.switches == [(B, 0.0, None)]
    engine = await backend.engine(B)
    await backend.show(
        state=State.SERVING, holder=B, endpoint=engine.path, epoch=2, switch_s=5.4321
    )
    async with await asking as response:
        assert response.status == 200
        assert response.headers["X-Switch-Ms"] == "5432"
    async with post(backend, B, Switch="force") as response:
        assert response.status == 200
        assert response.headers["X-Switch-Ms"] == "0"
    assert len(backend.switchboard.switches) == 1


async def test_a_wait_for_a_place_is_no_wait_for_a_switch(backend: Backend) -> None:
    """The resident model came by a switch long ago: 0."""
    engine = await backend.serving(A)
    await backend.show(switch_s=7.0)
    engine.first_byte.clear()
    running = [backend.asking() for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    waiting = asyncio.create_task(backend.chat())
    await until(lambda: backend.admission.num_queued)
    engine.first_byte.set()
    async with await waiting as response:
        assert response.headers["X-Switch-Ms"] == "0"
    await asyncio.gather(*running)


async def test_force_is_not_refused_for_an_old_failure(backend: Backend) -> None:
    """An admin's switch always tries; only the failure of that one ends the request."""
    await backend.serving(A)
    await backend.fail(B, seq=1)
    asking = asyncio.ensure_future(post(backend, B, Switch="force"))
    await until(lambda: backend.admission.num_queued)
    await backend.fail(B, seq=2)
    async with await asking as response:
        await refusal(response, 503, "model_load_failed")


async def test_force_learns_of_a_failure_before_it_waits(backend: Backend) -> None:
    """The view may know of it before the Switchboard's answer is here."""
    await backend.serving(A)

    async def begin_switch(*_: object) -> dict[str, Any]:
        await backend.fail(B, seq=1)
        return {}

    backend.switchboard.begin_switch = begin_switch  # type: ignore[method-assign]
    async with post(backend, B, Switch="force") as response:
        await refusal(response, 503, "model_load_failed")


async def test_force_while_the_switchboard_is_away_is_503(backend: Backend) -> None:
    """It is not turned into a mere wish."""
    await backend.serving(A)
    await backend.switchboard.go_away()
    async with post(backend, B, Switch="force") as response:
        await refusal(response, 503, str(Unavailable.code))


@pytest.fixture
async def leased(backend: Backend) -> Backend:
    """A serves and is leased."""
    await backend.serving(A)
    await backend.show(lease=LeaseView(A, "renders", 60, time.time() + 60))
    return backend


@pytest.mark.parametrize("intent", ["wait", "never"])
async def test_another_model_s_requests_are_refused_while_a_lease_stands(
    leased: Backend, intent: str
) -> None:
    """At once, with its end; the leased model's own are served."""
    async with post(leased, B, Switch=intent) as response:
        message = await refusal(response, 503, "leased")
        assert 55 <= int(response.headers["Retry-After"]) <= 60
    assert f"{A} is leased to renders until 20" in message
    assert (await leased.asking())[0] == 200


async def test_force_is_not_stopped_by_a_lease(leased: Backend) -> None:
    """It is an admin's switch, which ends the lease."""
    asking = asyncio.ensure_future(post(leased, B, Switch="force"))
    await until(lambda: leased.admission.num_queued)
    await leased.show(lease=None)
    await leased.serving(B, epoch=2)
    async with await asking as response:
        assert response.status == 200


async def test_a_lease_ends_the_waiting_for_other_models(backend: Backend) -> None:
    """Of plain requests and of streams; who waits for the leased model goes on."""
    for_a, for_b = backend.asking(), backend.asking(model=B)
    await until(lambda: backend.admission.num_queued == 2)
    await backend.show(lease=LeaseView(A, "renders", 60, None))
    status, body = await for_b
    assert (status, error_of(body)["code"]) == (503, "leased")
    assert "for 60 s once it serves" in error_of(body)["message"]
    await backend.serving(A)
    assert (await for_a)[0] == 200


async def test_a_lease_yet_to_begin_lets_the_resident_model_answer(backend: Backend) -> None:
    """Until its drain: then who still waits for it is refused."""
    engine = await backend.serving(A)
    await backend.show(lease=LeaseView(B, "renders", 60, None))
    engine.first_byte.clear()
    running = [backend.asking() for _ in range(2)]
    await until(lambda: engine.num_running == 2)
    waiting = backend.asking()
    await until(lambda: backend.admission.num_queued)
    await backend.show(state=State.DRAINING)
    assert (await waiting)[0] == 503
    engine.first_byte.set()
    assert [(await task)[0] for task in running] == [200] * 2


async def test_a_lease_whose_end_goes_unheard_of_ends_all_the_same(backend: Backend) -> None:
    """The Switchboard may be away just then."""
    await backend.serving(A)
    await backend.show(lease=LeaseView(A, "renders", 60, time.time() - 1))
    asking = backend.asking(model=B)
    await until(lambda: backend.admission.num_queued)
    await backend.serving(B, epoch=2)
    assert (await asking)[0] == 200
