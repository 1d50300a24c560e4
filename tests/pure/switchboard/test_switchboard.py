"""The Switchboard on a real event loop, between a fake host and the test as gateway and admin."""

import asyncio
import inspect
import json
import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deployments.memory.plan import Overhead, Plan, Room, plan
from deployments.residency import (
    GOLDEN_MISMATCH,
    GatewayReport,
    Load,
    LoadFailed,
    Phase,
    PhaseEntered,
    Problem,
    State,
    Waiting,
)
from deployments.residency.records import replay
from deployments.settings import AppArgs, EngineSettings, Settings, load_settings
from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.errors import (
    LeaseHeldError,
    SwitchboardError,
    UnknownTargetError,
    UnknownTicketError,
)
from deployments.switchboard.messages import Event, View
from deployments.switchboard.state_file import SavedState, load_state, save_state
from serve_app.gateway.switchboard_client import behind
from tests.gateway.fake_switchboard import FakeSwitchboard
from tests.pure.memory.test_plan import SHAPE
from tests.pure.switchboard.fake_host import BROKEN, FakeReplicas

A, B, C = "qwen-14b", "qwen-coder", "qwen-vl"
MISMATCH = Problem(GOLDEN_MISMATCH, "it answers wrongly")
MISSING = Problem("checkpoint_missing", "the weights are not there")
WAIT_S = 5.0
COLD = ["queued", "preparing", "loading", "verifying", "ready"]
SWITCH = ["queued", "preparing", "draining", "unloading", "loading", "verifying", "ready"]

pytestmark = pytest.mark.timeout(150)


def small_plan() -> Plan:
    """Of a model that is too large for its card."""
    engine = EngineSettings(max_model_len=64, max_num_seqs=1, max_num_batched_tokens=64)
    overhead, room = Overhead(1000, "estimate"), Room("cuda", 10_000)
    return plan(B, "x", SHAPE, engine, room, weights_bytes=20_000, overhead=overhead)


class Stage:
    """A Switchboard, its host, and all that it tells."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.host = settings, FakeReplicas()
        self.events: list[Event] = []
        self.state_file = settings.home / "run" / "residency.json"
        self.event_file = settings.home / "logs" / "residency.jsonl"
        self._seq = 0

    def start(self, **switching: float) -> Switchboard:
        changed = self.settings.switching.model_copy(update=switching)
        settings = self.settings.model_copy(update={"switching": changed})
        self.board = Switchboard(settings, self.host)
        self._at: tuple[str, int] | None = (self.board._runner.boot, 0)
        return self.board

    async def serving(self, model: str = A, **switching: float) -> Switchboard:
        """A started Switchboard whose default model serves."""
        board = self.start(**switching)
        await self.until(lambda e: e.kind == "switch" and e.data["phase"] == "ready")
        assert (await self.view()).holder == model
        return board

    async def until(self, is_it: Callable[[Event], bool]) -> Event:
        """The next event that `is_it`; all up to it are in `events`."""
        async with asyncio.timeout(60):
            while True:
                page = await self.board.events(self._at, 5)
                assert not page.has_gap
                for event in page.events:
                    self.events.append(event)
                    self._at = (page.boot, event.number)
                    if is_it(event):
                        return event

    async def phase(self, phase: str, ticket_id: str | None = None) -> Event:
        """The next ticket, or the one of this id, enters the phase."""
        return await self.until(
            lambda e: (
                e.kind == "switch"
                and e.data["phase"] == phase
                and ticket_id in (None, e.data["id"])
            )
        )

    async def view(self) -> View:
        """The present view; asking for it does not count as a gateway's watch."""
        await self.board.status()
        return self.board._runner.view

    async def report(self, in_flight: int = 0, closed: bool = True, *waiting: str) -> None:
        self._seq += 1
        epoch = self.board._runner.view.epoch
        await self.board.report(
            GatewayReport(
                "gateway",
                self._seq,
                epoch if closed else epoch - 1,
                {epoch: in_flight} if in_flight else {},
                {model: Waiting(1, 1000.0) for model in waiting},
            )
        )

    def phases(self, ticket_id: str) -> list[str]:
        return [e.data["phase"] for e in self.events if e.data.get("id") == ticket_id]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    settings = load_settings(AppArgs(profile="cpu-demo", home=str(tmp_path)), has_gpu=False)
    stage = Stage(settings.model_copy(update={"default_model": A}))
    yield stage
    await stage.board.close()
    assert not stage.host.loaded_while_other_resident


# --- start ---


async def test_start_loads_the_default_model(stage: Stage) -> None:
    """Its ticket is the first of the history."""
    board = await stage.serving()
    view = await stage.view()
    assert (view.state, view.epoch) == (State.SERVING, 1)
    assert stage.host.loads == [A]
    [ticket] = await board.tickets(10)
    assert (ticket["cause"], ticket["state"]) == ("start", "done")


async def test_the_saved_model_comes_back_after_a_restart(stage: Stage) -> None:
    """Not the default one, and under an epoch that was never used."""
    board = await stage.serving()
    await board.begin_switch(B, 0, WAIT_S)
    await board.close()
    saved = json.loads(stage.state_file.read_text())
    assert (saved["desired"], saved["epoch"]) == (B, 2)
    stage.host = FakeReplicas()
    await stage.serving(B)
    assert (await stage.view()).epoch == 3
    assert stage.host.loads == [B]


async def test_a_restart_keeps_the_tickets(stage: Stage) -> None:
    """One that was under way has failed, and says why."""
    board = await stage.serving()
    done = await board.begin_switch(B, 0, WAIT_S)
    stage.host.prepare_.clear()
    running = await board.begin_switch(A, 0, None)
    assert running["state"] in ("queued", "running")
    await board.close()
    stage.host = FakeReplicas()
    stage.host.found = (B, 2, "/run/b.sock")
    board = stage.start()
    await board.watch("gateway", None)
    assert (await board.ticket(done["id"]))["state"] == "done"
    lost = await board.ticket(running["id"])
    assert (lost["state"], lost["error"]["code"]) == ("failed", "switchboard_restarted")
    ids = [ticket["id"] for ticket in await board.tickets(50)]
    assert ids[:2] == [running["id"], done["id"]]


async def test_a_restart_keeps_a_lease_that_was_granted(stage: Stage) -> None:
    board = await stage.serving()
    held = (await board.lease(A, 60, "me"))["lease"]
    await board.close()
    stage.host = FakeReplicas()
    stage.host.found = (A, 1, "/run/a.sock")
    board = stage.start()
    await board.watch("gateway", None)
    again = (await board.status())["lease"]
    assert (again["model"], again["owner"], again["until"]) == (A, "me", held["until"])


async def test_an_emptied_place_stays_empty_over_a_restart(stage: Stage) -> None:
    """The GPU was freed for another program; a new start of the server loads the default again."""
    board = await stage.serving()
    await board.unload(0, WAIT_S)
    await board.close()
    stage.host = FakeReplicas()
    board = stage.start()
    await board.watch("gateway", None)
    assert not stage.host.loads
    await board.close()
    stage.host = FakeReplicas()
    stage.host.run = "session-2"
    await stage.serving(A)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"desired": 1}', '{"desired": "gone", "epoch": 1}', "\x00\xff"]
)
async def test_a_state_file_that_says_nothing_is_replaced(stage: Stage, content: str) -> None:
    """Garbage, or a model that there is no more: the default model is loaded."""
    stage.state_file.parent.mkdir(parents=True)
    stage.state_file.write_text(content)
    await stage.serving(A)
    assert json.loads(stage.state_file.read_text())["desired"] == A


async def test_a_state_file_that_cannot_be_written_stops_nothing(stage: Stage) -> None:
    """The disk is full, or read-only."""
    stage.state_file.parent.write_text("not a folder")
    board = await stage.serving()
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"


async def test_a_restart_adopts_the_engine_that_runs(stage: Stage) -> None:
    """No second one is started; and when it dies later, it is brought back."""
    stage.host.found = (B, 7, "/run/b.sock")
    board = stage.start()
    view = await board.watch("gateway", None)
    assert (view.state, view.holder, view.epoch) == (State.SERVING, B, 7)
    assert view.endpoint == "/run/b.sock"
    assert not stage.host.loads
    await stage.report()
    stage.host.lose(B)
    await stage.phase("ready")
    assert stage.host.loads == [B]
    assert (await stage.view()).epoch == 8


async def test_an_adopted_engine_of_an_older_load_does_not_turn_the_epochs_back(
    stage: Stage,
) -> None:
    """As when a load was interrupted whose old engine could not be stopped: the epochs given since
    are not given again, also after another restart."""
    save_state(stage.state_file, SavedState(B, 9))
    stage.host.found = (B, 7, "/run/b.sock")
    await stage.start().watch("gateway", None)
    saved = load_state(stage.state_file)
    assert saved
    assert (saved.desired, saved.epoch) == (B, 9)


async def test_calls_during_the_start_wait_for_it(stage: Stage) -> None:
    """A switch asked for before it is known what runs starts no second engine."""
    stage.host.find.clear()
    stage.host.found = (A, 3, "/run/a.sock")
    board = stage.start()
    asking = [
        asyncio.create_task(board.watch("gateway", None)),
        asyncio.create_task(board.begin_switch(A, 0, WAIT_S)),
        asyncio.create_task(board.lease(A, 60, "me")),
        asyncio.create_task(board.unload(0, None)),
    ]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in asking)
    stage.host.find.set()
    async with asyncio.timeout(60):
        _, switch, lease, _ = await asyncio.gather(*asking)
    assert switch["state"] == lease["ticket"]["state"] == "done"
    assert not stage.host.loads


# --- a switch ---


async def test_a_switch_goes_through_its_phases_in_order(stage: Stage) -> None:
    """The old engine is released before the new one begins; each phase is one event."""
    board = await stage.serving()
    ticket = await board.begin_switch(B, 0, WAIT_S)
    assert (ticket["state"], ticket["from"], ticket["to"]) == ("done", A, B)
    await stage.until(lambda e: e.data.get("id") == ticket["id"] and e.data["phase"] == "ready")
    assert stage.phases(ticket["id"]) == SWITCH
    assert (stage.host.loads, stage.host.releases) == ([A, B], [A])
    assert (await stage.view()).switch_s > 0


async def test_a_drain_waits_for_the_gateway(stage: Stage) -> None:
    """The ticket says for what; the engine is released once the count is zero."""
    board = await stage.serving()
    await board.watch("gateway", None)
    await stage.report(2, False)
    ticket = await board.begin_switch(B, 60, None)
    await stage.phase("draining")
    waiting = await board.ticket(ticket["id"])
    assert waiting["waits_for"] == {"in_flight": 2, "gateways": 1}
    await stage.report(1)
    assert (await board.ticket(ticket["id"]))["waits_for"] == {"in_flight": 1}
    assert not stage.host.releases
    await stage.report(0)
    await stage.phase("ready")
    assert (await board.ticket(ticket["id"]))["waits_for"] == {}


async def test_a_drain_deadline_cuts(stage: Stage) -> None:
    """The view tells gateways to end what is in flight; when they have, the switch goes on."""
    board = await stage.serving()
    view = await board.watch("gateway", None)
    await stage.report(1, False)
    ticket = await board.begin_switch(B, 0, None)
    async with asyncio.timeout(60):
        while not view.is_cut:
            view = await board.watch("gateway", (view.boot, view.version))
    await stage.report(0)
    await stage.phase("ready")
    assert (await board.ticket(ticket["id"]))["state"] == "done"


async def test_requests_that_wait_bring_their_model(stage: Stage) -> None:
    """A gateway reports them; no admin is needed."""
    board = await stage.serving(min_resident_s=0)
    await board.watch("gateway", None)
    await stage.report(0, False, B)
    await stage.phase("draining")
    await stage.report(0, True, B)
    event = await stage.phase("ready")
    assert (event.data["to"], event.data["cause"]) == (B, "request")


async def test_a_failed_load_is_rolled_back(stage: Stage) -> None:
    """The old model serves again, under a new epoch, and the view says why."""
    board = await stage.serving()
    stage.host.faults[B].append(BROKEN)
    ticket = await board.begin_switch(B, 0, WAIT_S)
    assert ticket["state"] == "rolled_back"
    assert ticket["error"]["code"] == "engine_ended"
    assert stage.host.loads == [A, B, A]
    view = await stage.view()
    assert (view.state, view.holder, view.epoch) == (State.SERVING, A, 3)
    assert view.failures[B].problem.code == "engine_ended"
    assert view.switch_s > 0
    await stage.phase("rolled_back")
    kinds = [e.data["model"] for e in stage.events if e.kind == "failure"]
    assert kinds == [B]


async def test_a_rollback_that_fails_leaves_the_place_empty_and_says_so(stage: Stage) -> None:
    """Both causes are events; a later switch works."""
    board = await stage.serving()
    stage.host.faults[B].append(BROKEN)
    stage.host.faults[A].append(BROKEN)
    ticket = await board.begin_switch(B, 0, WAIT_S)
    assert ticket["state"] == "failed"
    view = await stage.view()
    assert (view.state, view.holder, view.place_failed) == (State.EMPTY, None, True)
    assert set(view.failures) == {A, B}
    assert (await board.begin_switch(C, 0, WAIT_S))["state"] == "done"


@pytest.mark.parametrize(
    ("num_wrong", "state", "loads"),
    [(1, "done", [A, B, B]), (2, "rolled_back", [A, B, B, A])],
)
async def test_a_wrong_answer_earns_one_restart(
    stage: Stage, num_wrong: int, state: str, loads: list[str]
) -> None:
    """A second one is a failed load."""
    board = await stage.serving()
    stage.host.faults[B].extend([MISMATCH] * num_wrong)
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == state
    assert stage.host.loads == loads


async def test_a_refused_target_never_unloads(stage: Stage) -> None:
    """Its files are not whole: the old model goes on under the same epoch."""
    board = await stage.serving()
    stage.host.refusals[B] = MISSING
    ticket = await board.begin_switch(B, 0, WAIT_S)
    assert (ticket["state"], ticket["error"]["code"]) == ("failed", "checkpoint_missing")
    assert (await stage.view()).epoch == 1
    assert not stage.host.releases


async def test_a_hold_that_raises_is_a_failed_load(stage: Stage) -> None:
    """The exception is logged, and no client sees it."""
    board = await stage.serving()
    stage.host.faults[B].append(RuntimeError("secret"))
    ticket = await board.begin_switch(B, 0, WAIT_S)
    assert ticket["state"] == "rolled_back"
    assert "secret" not in json.dumps(ticket)


async def test_a_release_that_raises_does_not_stop_the_switch(stage: Stage) -> None:
    """The lock on the place is what keeps a second engine away."""
    board = await stage.serving()
    stage.host.release_fault = RuntimeError("secret")
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"


async def test_an_engine_that_dies_is_an_event_and_is_loaded_again(stage: Stage) -> None:
    """Lost, then its recovery, in this order."""
    await stage.serving(probation_s=0)
    stage.host.lose(A)
    await stage.phase("ready")
    told = [(e.kind, e.data.get("phase")) for e in stage.events[len(COLD) :]]
    assert told[0] == ("engine_lost", None)
    assert [phase for _, phase in told[1:]] == ["queued", *SWITCH[3:]]
    assert stage.events[len(COLD)].data["epoch"] == 1


async def test_an_engine_that_dies_on_probation_is_rolled_back(stage: Stage) -> None:
    """The ticket that was done goes on, and each of its steps is one event."""
    board = await stage.serving(probation_s=60)
    ticket = await board.begin_switch(B, 0, WAIT_S)
    stage.host.lose(B)
    await stage.phase("rolled_back")
    assert (await board.ticket(ticket["id"]))["state"] == "rolled_back"
    back = ["unloading", "loading", "verifying", "rolled_back"]
    assert stage.phases(ticket["id"]) == [*SWITCH, *back]


# --- many at once ---


async def test_twenty_switches_at_once_load_each_model_once_a_change(stage: Stage) -> None:
    """The same target joins the same ticket, and none is loaded over itself."""
    board = await stage.serving()
    switches = [board.begin_switch([A, B, C][n % 3], 0, WAIT_S) for n in range(20)]
    tickets = await asyncio.gather(*switches)
    assert {ticket["state"] for ticket in tickets} == {"done"}
    assert len({ticket["id"] for ticket in tickets}) == 4  # A, done at once; B; C; A again
    assert stage.host.loads == [A, B, C, A]
    assert stage.host.releases == [A, B, C]


async def test_a_switch_under_way_is_joined(stage: Stage) -> None:
    """While it prepares and while it loads; a request for another model is queued behind it."""
    board = await stage.serving()
    stage.host.load.clear()
    first = await board.begin_switch(B, 0, None)
    await stage.host.begun(B)
    assert (await board.begin_switch(B, 0, None))["id"] == first["id"]
    other = await board.begin_switch(C, 0, None)
    assert (other["state"], other["id"] != first["id"]) == ("queued", True)
    stage.host.load.set()
    assert (await board.begin_switch(C, 0, WAIT_S))["id"] == other["id"]
    assert stage.host.loads == [A, B, C]


async def test_waiting_for_a_ticket_ends_with_its_time(stage: Stage) -> None:
    """The ticket comes as it stands, and the switch goes on."""
    board = await stage.serving()
    stage.host.load.clear()
    assert (await board.begin_switch(B, 0, 0.01))["state"] == "running"
    stage.host.load.set()
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"


# --- events and answers ---


async def test_events_and_history_are_complete_and_in_order(stage: Stage) -> None:
    """Numbers without a gap, one open ticket at a time, the newest ticket first."""
    board = await stage.serving()
    stage.host.faults[C].append(BROKEN)
    switches = [board.begin_switch(model, 0, WAIT_S) for model in (B, C, A)]
    ids = [ticket["id"] for ticket in await asyncio.gather(*switches)]
    await stage.until(lambda e: e.data.get("id") == ids[-1] and e.data["phase"] == "ready")
    assert [e.number for e in stage.events] == list(range(1, len(stage.events) + 1))
    open_ticket = None
    for event in [e for e in stage.events if e.kind == "switch"]:
        phase, ticket_id = event.data["phase"], event.data["id"]
        if phase == Phase.QUEUED:
            continue
        assert open_ticket in (None, ticket_id)
        open_ticket = None if phase in ("ready", "rolled_back", "failed") else ticket_id
        assert event.data["phases"][-1]["phase"] == phase or open_ticket is None
    listed = [ticket["id"] for ticket in await board.tickets(10)]
    assert listed[:3] == ids[::-1]
    assert len(listed) == 4
    assert [t["id"] for t in await board.tickets(2)] == listed[:2]
    for ticket_id in listed:
        now = await board.ticket(ticket_id)
        told = [e.data for e in stage.events if e.data.get("id") == ticket_id][-1]
        assert told == now


async def test_a_listener_goes_on_where_it_was(stage: Stage) -> None:
    """From any event it gets exactly those after it; from another boot all, and a word of it."""
    board = await stage.serving()
    await board.begin_switch(B, 0, WAIT_S)
    boot = board._runner.boot
    start = await board.events(None, 0)
    assert (start.events, start.has_gap) == ([], False)
    for number in range(start.last):
        page = await board.events((boot, number), 0)
        assert [e.number for e in page.events] == list(range(number + 1, start.last + 1))
        assert (page.last, page.has_gap) == (start.last, False)
    for unknown in [("other", 3), (boot, start.last + 1)]:
        page = await board.events(unknown, 0)
        assert page.has_gap
        assert [e.number for e in page.events] == list(range(1, start.last + 1))


async def test_a_waiting_listener_gets_an_event_at_once_or_an_empty_page_in_time(
    stage: Stage,
) -> None:
    """A long poll; an empty page is a sign of life."""
    board = await stage.serving()
    here = await board.events(None, 0)
    assert (await board.events((here.boot, here.last), 0.01)).events == []
    polling = asyncio.create_task(board.events((here.boot, here.last), 5))
    await asyncio.sleep(0)
    await board.begin_switch(B, 0, WAIT_S)
    assert (await polling).events[0].data["to"] == B


async def test_events_and_tickets_are_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are forgotten; a listener that asks for them learns that there is a gap."""
    monkeypatch.setattr("deployments.switchboard.history._NUM_TICKETS", 3)
    monkeypatch.setattr("deployments.switchboard.history._NUM_ON_A_PAGE", 10)
    board = await stage.serving()
    for _ in range(600):
        await board.begin_switch(A, 0, None)  # done at once: two events
    assert len(await board.tickets(100)) == 3
    page = await board.events((board._runner.boot, 1), 0)
    assert page.has_gap
    assert (len(page.events), page.events[0].number) == (10, len(COLD) + 201)


async def test_a_ticket_says_how_long_it_should_take(stage: Stage) -> None:
    """Nothing is known of the first; a later one counts down and ends without."""
    board = await stage.serving()
    first = await board.begin_switch(B, 0, WAIT_S)
    assert (first["estimate_s"], first["eta_s"]) == (None, None)
    await board.begin_switch(A, 0, WAIT_S)
    stage.host.load.clear()
    again = await board.begin_switch(B, 0, None)
    await stage.host.begun(B)
    running = await board.ticket(again["id"])
    assert 0 <= running["eta_s"] <= running["estimate_s"] + 0.1
    stage.host.load.set()
    over = await board.begin_switch(B, 0, WAIT_S)
    assert (over["eta_s"], over["estimate_s"]) == (None, running["estimate_s"])


async def test_unknown_models_and_tickets_are_refused(stage: Stage) -> None:
    """Whoever asks."""
    board = await stage.serving()
    for asking in (
        board.begin_switch("nope", 0, None),
        board.would_switch("nope"),
        board.lease("nope", 1, "me"),
    ):
        with pytest.raises(UnknownTargetError):
            await asking
    with pytest.raises(UnknownTicketError):
        await board.ticket("sw-9")


# --- what is written down ---


async def test_written_events_replay_to_the_same_transitions(stage: Stage) -> None:
    """A lease, a load that fails, a drain that is cut, a death on probation: the file of a real run
    leads a new machine through the same events, and to the same state."""
    board = await stage.serving()
    lease = await board.lease(B, 60, "renders")
    await stage.phase("ready", lease["ticket"]["id"])
    stage.host.faults[C].append(BROKEN)
    await board.begin_switch(C, 0, WAIT_S)
    await board.watch("gateway", None)
    await stage.report(1, False, C)
    switch = (await board.begin_switch(A, 0, None))["id"]
    await stage.phase("draining", switch)
    await stage.report(0)
    await stage.phase("ready", switch)
    stage.host.lose(A)
    await stage.phase("rolled_back", switch)
    steps = list(replay(stage.event_file.read_text().splitlines()))
    changes = [change for step in steps for change in step.changes]
    phases = [(c.ticket.id, c.phase) for c in changes if isinstance(c, PhaseEntered)]
    assert phases == [(e.data["id"], e.data["phase"]) for e in stage.events if e.kind == "switch"]
    failed = [change.model for change in changes if isinstance(change, LoadFailed)]
    assert failed == [e.data["model"] for e in stage.events if e.kind == "failure"] == [C, A]
    loads = [e.model for step in steps for e in step.effects if isinstance(e, Load)]
    assert loads == stage.host.loads
    assert steps[-1].machine == board._runner.machine
    *_, last = replay(board._runner.event_log.last_lines)
    assert last.machine == board._runner.machine


async def test_a_restart_goes_on_in_the_same_file(stage: Stage) -> None:
    """With the state it begins with: what was saved, and the engine it found."""
    board = await stage.serving()
    await board.close()
    stage.host = FakeReplicas()
    stage.host.found = (A, 1, "/run/a.sock")
    board = stage.start()
    await board.watch("gateway", None)
    *_, last = replay(stage.event_file.read_text().splitlines())
    assert last.machine == board._runner.machine
    assert (last.machine.holder, last.machine.epoch) == (A, 1)


async def test_events_that_cannot_be_written_stop_nothing(stage: Stage) -> None:
    """The disk is full, or read-only."""
    stage.event_file.parent.write_text("not a folder")
    board = await stage.serving()
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"


# --- dry run, unload, lease ---


async def test_a_dry_run_gives_the_memory_plan_and_says_what_does_not_fit(stage: Stage) -> None:
    board = await stage.serving()
    assert (await board.would_switch(B))["memory"] is None  # it cannot be known
    made = stage.host.plans[B] = small_plan()
    stage.host.refusals[B] = Problem("does_not_fit", "it does not fit")
    would = await board.would_switch(B)
    assert would["memory"] == asdict(made)
    assert json.loads(json.dumps(would["memory"]))["fits"] is False
    assert [(b["kind"], b["code"]) for b in would["blockers"]] == [("memory", "does_not_fit")]


async def test_a_model_that_does_not_fit_is_refused_while_the_old_one_serves(
    stage: Stage,
) -> None:
    board = await stage.serving()
    stage.host.refusals[B] = Problem("does_not_fit", "it does not fit")
    ticket = await board.begin_switch(B, None, WAIT_S)
    assert ticket["state"] == "failed"
    assert ticket["error"]["code"] == "does_not_fit"
    assert (stage.host.releases, stage.host.loads) == ([], [A])
    assert (await stage.view()).holder == A


async def test_status_shows_what_the_last_unload_gave_back(stage: Stage) -> None:
    board = await stage.serving()
    assert (await board.status())["memory"] == stage.host.memory_status()


async def test_a_dry_run_changes_nothing(stage: Stage) -> None:
    """It tells of the switch and of what speaks against it, and no event follows."""
    board = await stage.serving()
    before, here = await stage.view(), await board.events(None, 0)
    would = await board.would_switch(B)
    assert (would["from"], would["to"], would["blockers"]) == (A, B, [])
    stage.host.refusals[B] = MISSING
    blockers = (await board.would_switch(B))["blockers"]
    assert [blocker["code"] for blocker in blockers] == ["checkpoint_missing"]
    assert [blocker["kind"] for blocker in blockers] == ["files"]
    assert (await stage.view(), await board.events(None, 0)) == (before, here)
    assert (stage.host.num_prepared, stage.host.loads) == (1, [A])


async def test_unload_leaves_the_place_empty_until_a_switch(stage: Stage) -> None:
    """Nothing is desired any more, and nothing comes back by itself."""
    board = await stage.serving()
    ticket = await board.unload(0, WAIT_S)
    assert (ticket["state"], ticket["to"]) == ("done", None)
    view = await stage.view()
    assert (view.state, view.holder, view.place_failed) == (State.EMPTY, None, False)
    assert json.loads(stage.state_file.read_text())["desired"] is None
    assert (await board.unload(0, None))["state"] == "done"
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"
    assert stage.host.loads == [A, B]


def held(view: View) -> tuple[Any, ...] | None:
    return view.lease and (view.lease.model, view.lease.owner, view.lease.until is not None)


async def test_a_lease_loads_its_model_and_counts_from_then(stage: Stage) -> None:
    """Granted, begun and ended are events; the view and the status show it."""
    board = await stage.serving()
    stage.host.load.clear()
    answer = await board.lease(B, 60, "renders")
    assert answer["lease"] == {"model": B, "owner": "renders", "seconds": 60, "until": None}
    assert answer["ticket"]["to"] == B
    assert held(await stage.view()) == (B, "renders", False)
    stage.host.load.set()
    await stage.until(lambda e: e.kind == "lease" and e.data["lease"]["until"] is not None)
    assert held(await stage.view()) == (B, "renders", True)
    status = await board.status()
    assert status["lease"]["until"]
    assert await board.end_lease() == {"ended": status["lease"]}
    assert await board.end_lease() == {"ended": None}
    assert (await stage.view()).lease is None
    assert not (await stage.until(lambda e: e.kind == "lease")).data["lease"]


async def test_a_lease_of_another_is_refused(stage: Stage) -> None:
    """The same owner may change its own; an admin's switch ends it."""
    board = await stage.serving()
    await board.lease(A, 60, "renders")
    with pytest.raises(LeaseHeldError, match="renders"):
        await board.lease(A, 60, "somebody")
    assert (await board.lease(A, 90, "renders"))["lease"]["seconds"] == 90
    await board.begin_switch(B, 0, WAIT_S)
    assert (await stage.view()).lease is None


async def test_a_lease_ends_with_its_time(stage: Stage) -> None:
    """By itself: gateways need not ask."""
    board = await stage.serving()
    await board.lease(A, 0.05, "renders")
    await stage.until(lambda e: e.kind == "lease" and e.data["lease"] is None)
    assert (await stage.view()).lease is None


async def test_a_lease_keeps_waiting_requests_from_switching(stage: Stage) -> None:
    """They get their switch when it ends."""
    board = await stage.serving(min_resident_s=0)
    await board.lease(A, 60, "renders")
    await board.watch("gateway", None)
    await stage.report(0, False, B)
    assert (await board.status())["switch"] is None
    await board.end_lease()
    await stage.phase("draining")


CALLS = [name for name in vars(Switchboard) if not name.startswith("_") and name != "close"]


@pytest.mark.parametrize("name", CALLS)
def test_the_gateways_tests_and_the_switchboard_mean_the_same_calls(name: str) -> None:
    """No type checker checks a call through a handle: names, parameters and types are the same."""
    real, fake = getattr(Switchboard, name), getattr(FakeSwitchboard, name)
    assert inspect.signature(fake) == inspect.signature(real)


async def test_a_gateway_s_calls_go_to_the_deployment_as_they_are() -> None:
    """What it raises is raised to the gateway."""

    class Method:
        def __init__(self, name: str) -> None:
            self.name = name

        async def remote(self, *args: Any) -> Any:
            if self.name == "ticket":
                raise UnknownTicketError("There is none.")
            return self.name, args

    class Handle:
        def __getattr__(self, name: str) -> Method:
            return Method(name)

    board = behind(Handle())  # type: ignore[arg-type]
    assert await board.begin_switch(A, 0, None) == ("begin_switch", (A, 0, None))
    assert await board.status() == ("status", ())
    with pytest.raises(UnknownTicketError):
        await board.ticket("sw-9")


@pytest.mark.parametrize("kind", SwitchboardError.__subclasses__())
def test_refusals_keep_their_text_through_pickle(kind: type[SwitchboardError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("the message")))  # noqa: S301  our own
    assert (type(copy), str(copy)) == (kind, "the message")


# --- a disk that hangs ---


async def test_hanging_disk_fails_its_switch_and_is_asked_no_second_time(stage: Stage) -> None:
    """What reads it holds a thread: more of them would stop everything else. The rest goes on."""
    board = await stage.serving()
    machine = board._runner.machine
    machine.policy = replace(machine.policy, load_timeout_s=0.1)
    num_prepared = stage.host.num_prepared
    stage.host.prepare_.clear()
    first = await board.begin_switch(B, 0, WAIT_S)
    second = await board.begin_switch(B, 0, WAIT_S)
    for ticket in (first, second):
        assert (ticket["state"], ticket["error"]["code"]) == ("failed", "prepare_timeout")
    assert stage.host.num_prepared == num_prepared + 1
    assert (await stage.view()).state is State.SERVING
    machine.policy = replace(machine.policy, load_timeout_s=600.0)
    stage.host.prepare_.set()
    assert (await board.begin_switch(B, 0, WAIT_S))["state"] == "done"
