"""The Python client against a gateway with the real Switchboard: switches, leases."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app import client
from serve_app.client import LLMClient
from serve_app.client.transport import Clock
from tests.gateway.conftest import MESSAGES, A, B, Whole, until
from tests.pure.switchboard.fake_host import BROKEN

PHASES = ["preparing", "draining", "unloading", "loading", "verifying", "ready"]


class Pauses:
    """A clock whose sleeps end when the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._ends = asyncio.Semaphore(0)
        self.clock = Clock(sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._ends.acquire()

    async def end_one(self) -> None:
        """The present sleep ends; returns when the next has begun."""
        num = len(self.asked)
        self._ends.release()
        await until(lambda: len(self.asked) > num)


@pytest.fixture
async def llm(whole: Whole) -> AsyncIterator[LLMClient]:
    async with LLMClient(whole.url) as llm:
        yield llm


def seen_phases(seen: list[dict[str, Any]]) -> list[str]:
    phases = [ticket["phase"] for ticket in seen]
    return [p for n, p in enumerate(phases) if phases[n - 1 : n] != [p]]


async def test_a_switch_is_followed_through_its_phases(whole: Whole, llm: LLMClient) -> None:
    """In order, to the finished ticket."""
    seen: list[dict[str, Any]] = []
    ticket = await llm.switch(B, on_progress=seen.append)
    assert (ticket["state"], ticket["from"], ticket["to"]) == ("done", A, B)
    assert [p for p in seen_phases(seen) if p != "queued"] == PHASES
    assert seen[-1] == ticket
    assert (await llm.chat(model=B, messages=MESSAGES))["model"] == B


async def test_a_switch_tells_what_it_waits_for(
    whole: Whole, llm: LLMClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two phases too; and `on_progress` may be a coroutine function."""
    monkeypatch.setattr("serve_app.client.switching._POLL_S", 0.02)
    whole.engines[A].next_token.clear()
    has_told = asyncio.Event()

    async def listen(ticket: dict[str, Any]) -> None:
        if ticket["waits_for"] == {"in_flight": 1}:
            has_told.set()

    stream = llm.stream(model=A, messages=MESSAGES)
    await anext(stream)
    switching = asyncio.create_task(llm.switch(B, listen))
    async with asyncio.timeout(60):
        await has_told.wait()
    whole.engines[A].next_token.set()
    assert [chunk async for chunk in stream]
    assert (await switching)["state"] == "done"


async def test_force_cuts_what_is_in_flight(whole: Whole, llm: LLMClient) -> None:
    """And the stream says so."""
    whole.engines[A].next_token.clear()
    stream = llm.stream(model=A, messages=MESSAGES)
    await anext(stream)
    async with asyncio.timeout(60):
        await llm.switch(B, force=True)
    with pytest.raises(client.AnswerCut) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "model_switching"


async def test_a_switch_that_is_rolled_back_raises_its_ticket(whole: Whole, llm: LLMClient) -> None:
    """With the cause in its text."""
    whole.host.faults[B].extend([BROKEN] * 3)
    with pytest.raises(
        client.SwitchFailed, match=f"rolled back to {A}: the engine ended"
    ) as caught:
        await llm.switch(B)
    assert caught.value.ticket["state"] == "rolled_back"


async def test_a_switch_goes_on_when_nobody_waits(whole: Whole, llm: LLMClient) -> None:
    """A deadline ends the following, not the switch."""
    whole.host.load.clear()
    with pytest.raises(client.DeadlineExceeded):
        await llm.switch(B, timeout_s=0.3)
    whole.host.load.set()
    await until(lambda: whole.gateway.admission.is_resident(B))


async def test_a_dry_run_changes_nothing(whole: Whole, llm: LLMClient) -> None:
    """And tells what would happen."""
    assert (await llm.would_switch(B))["to"] == B
    assert whole.host.loads == [A]


async def test_an_unload_ends_idle(whole: Whole, llm: LLMClient) -> None:
    """Followed like a switch."""
    seen: list[dict[str, Any]] = []
    assert (await llm.unload(seen.append))["state"] == "done"
    assert seen
    await until(lambda: whole.gateway.health()["state"] == "idle")


async def test_a_lease_is_renewed_while_held_and_ended_after(whole: Whole) -> None:
    """It begins when the model serves; nobody else gets one meanwhile."""
    pauses = Pauses()
    machine = whole.board._runner.machine
    async with LLMClient(whole.url, clock=pauses.clock) as llm:
        async with llm.lease(B, seconds=60, owner="renders") as lease:
            assert whole.gateway.admission.is_resident(B)
            await until(lambda: pauses.asked == [20])
            first = machine.held
            assert first
            await pauses.end_one()
            assert machine.held
            assert machine.held.until
            assert first.until
            assert machine.held.until > first.until
            with pytest.raises(client.LeaseHeld, match="renders"):
                async with llm.lease(A, owner="other"):
                    pass
            assert lease.lost is None
        assert machine.held is None


async def test_a_lease_that_an_admin_overrides_is_lost_and_not_taken_back(whole: Whole) -> None:
    """Nor is somebody else's ended at the end of the block."""
    pauses = Pauses()
    machine = whole.board._runner.machine
    async with LLMClient(whole.url, clock=pauses.clock) as llm:
        async with llm.lease(B, seconds=60) as lease:
            await until(lambda: pauses.asked == [20])
            await llm.switch(A)
            await llm.take_lease(A, 60, "other")
            pauses._ends.release()
            await until(lambda: lease.lost)
        assert machine.held
        assert machine.held.owner == "other"
        assert await llm.end_lease()
    assert whole.host.loads == [A, B, A]


async def test_a_lease_can_be_of_a_task(whole: Whole, llm: LLMClient) -> None:
    """The same model doing something else is another thing to keep."""
    async with llm.lease("qwen-vl", task="embed"):
        held = whole.board._runner.machine.held
        assert held
        assert held.model == "qwen-vl:embed"


async def test_a_lease_of_a_model_that_fails_raises(whole: Whole, llm: LLMClient) -> None:
    """And leaves no lease behind."""
    whole.host.faults[B].extend([BROKEN] * 3)
    with pytest.raises(client.SwitchFailed):
        async with llm.lease(B):
            pass
    assert whole.board._runner.machine.held is None
