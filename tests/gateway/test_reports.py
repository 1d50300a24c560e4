"""What a gateway tells the Switchboard, on which drains and switches are decided."""

import asyncio

import pytest

from deployments.residency import State
from tests.gateway.conftest import A, B, Backend, until


async def test_each_step_of_a_switch_is_reported(backend: Backend) -> None:
    """Admitting, then not any more but still in flight, then nothing, then the new epoch."""
    told = backend.switchboard.told
    engine = await backend.serving(A, epoch=1)
    await told(lambda report: report.closed_epoch == 0 and not report.in_flight)
    engine.first_byte.clear()
    running = [backend.asking() for _ in range(2)]
    await until(lambda: engine.num_running == 2)

    waiting = [backend.asking(model=B), backend.asking(model=B)]
    report = await told(lambda report: B in report.waiting and report.waiting[B].num_requests == 2)
    assert report.in_flight == {1: 2}
    assert 0 <= report.waiting[B].oldest_age_s < 60

    await backend.show(state=State.DRAINING)
    report = await told(lambda report: report.closed_epoch >= 1)
    assert report.in_flight == {1: 2}
    engine.first_byte.set()
    await told(lambda report: not report.in_flight)
    await asyncio.gather(*running)

    await backend.show(state=State.LOADING, holder=B, epoch=2)
    await backend.serving(B, epoch=2)
    await asyncio.gather(*waiting)
    report = await told(lambda report: not report.waiting)
    assert report.closed_epoch == 1


async def test_reports_are_numbered_in_order(backend: Backend) -> None:
    """A later one replaces an earlier, also when some were lost on the way."""
    await backend.serving(A, epoch=1)
    await backend.switchboard.go_away()
    waiting = backend.asking(model=B)
    await backend.switchboard.refused(2)
    backend.switchboard.is_away = False
    await backend.switchboard.told(lambda report: B in report.waiting)
    await backend.serving(B, epoch=2)
    await waiting
    numbers = [report.seq for report in backend.switchboard.reports]
    assert numbers == sorted(set(numbers))
    assert len({report.gateway for report in backend.switchboard.reports}) == 1


async def test_an_admitted_waiter_is_no_longer_reported_as_waiting(backend: Backend) -> None:
    """Else the Switchboard would take the resident model for wanted when nobody waits."""
    engine = await backend.serving(A)
    engine.first_byte.clear()
    asking = [backend.asking() for _ in range(3)]
    await backend.switchboard.told(lambda report: A in report.waiting)
    engine.first_byte.set()
    await asyncio.gather(*asking)
    await backend.switchboard.told(lambda report: not report.waiting)


async def test_a_request_in_service_of_a_quiet_gateway_costs_no_report(backend: Backend) -> None:
    """While a model serves and nobody waits, requests come and go without a call for each."""
    await backend.serving(A, epoch=2)
    await backend.switchboard.told(lambda report: report.closed_epoch == 1)
    num_reports = len(backend.switchboard.reports)
    for _ in range(5):
        assert (await backend.asking())[0] == 200
    assert len(backend.switchboard.reports) <= num_reports + 1  # which its time may have brought


async def test_a_quiet_gateway_tells_now_and_then_that_it_is_in_use(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long nothing has been in flight: an idle model is told from one that is in use."""
    monkeypatch.setattr("serve_app.gateway.gateway._REPORT_S", 0.05)
    told = backend.switchboard.told
    engine = await backend.serving(A, epoch=2)
    report = await told(lambda report: report.closed_epoch == 1)
    assert report.last_active_age_s is None  # never yet
    engine.first_byte.clear()
    asking = backend.asking()
    for _ in range(2):
        seq = backend.switchboard.reports[-1].seq
        report = await told(lambda report: report.seq > seq and bool(report.in_flight))  # noqa: B023
        assert report.last_active_age_s == 0
    engine.first_byte.set()
    await asking
    ages = [0.0]
    for _ in range(3):
        report = await told(lambda report: not report.in_flight and report.seq > seq)  # noqa: B023
        seq = report.seq
        assert report.last_active_age_s is not None
        ages.append(report.last_active_age_s)
    assert ages == sorted(set(ages))
