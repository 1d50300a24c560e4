"""A slot belongs to a block: it is released however the block is entered and left."""

import asyncio
from dataclasses import replace

import pytest

from deployments.residency import State
from deployments.settings import AppArgs, load_settings
from deployments.switchboard.messages import View
from serve_app.gateway.admission import Admission, AdmissionRequest, OnAbsent
from serve_app.protocol.errors import DeadlineExceeded

A = "qwen-14b"
EMPTY = View("boot-1", 0, State.EMPTY, 0, None, None, False)
SERVING = replace(EMPTY, version=1, state=State.SERVING, holder=A, endpoint="/x.sock", epoch=1)


@pytest.fixture
def admission() -> Admission:
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    admission = Admission(settings.limits, gateway="g")
    admission.apply(EMPTY)
    return admission


async def hold(admission: Admission, deadline: float) -> None:
    async def wait(decided: asyncio.Future[None]) -> None:
        await asyncio.wait([decided])

    async with admission.admit(AdmissionRequest(A, deadline, OnAbsent.WAIT, deadline, 0), wait):
        await asyncio.Event().wait()


async def waiting(admission: Admission, for_s: float) -> asyncio.Task[None]:
    """Put a request in the queue and return its task."""
    deadline = asyncio.get_running_loop().time() + for_s
    holding = asyncio.create_task(hold(admission, deadline))
    while not admission.num_queued:  # noqa: ASYNC110  (a count has no event to wait for)
        await asyncio.sleep(0)
    return holding


async def test_a_request_that_leaves_just_as_it_is_admitted_holds_no_slot(
    admission: Admission,
) -> None:
    """Its task is cancelled before it learns of its slot."""
    holding = await waiting(admission, 60)
    admission.apply(SERVING)
    assert admission.num_in_flight == 1
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert not admission.num_in_flight


async def test_a_request_whose_time_ends_just_as_it_is_admitted_holds_no_slot(
    admission: Admission,
) -> None:
    """The view and the deadline arrive in the same turn of the event loop."""
    holding = await waiting(admission, 0.01)
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.02
    while loop.time() < end:  # block the event loop
        pass
    admission.apply(SERVING)
    assert admission.num_in_flight == 1
    with pytest.raises(DeadlineExceeded):
        await holding
    assert not admission.num_in_flight


async def test_a_request_that_fails_holds_no_slot(admission: Admission) -> None:
    """Also if it was admitted immediately."""
    admission.apply(SERVING)
    deadline = asyncio.get_running_loop().time() + 60

    async def fail() -> None:
        async with admission.admit(
            AdmissionRequest(A, deadline, OnAbsent.WAIT, deadline, 0), _never
        ):
            assert admission.num_in_flight == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not admission.num_in_flight


async def _never(decided: asyncio.Future[None]) -> None:
    raise AssertionError("this request must be admitted without waiting")
