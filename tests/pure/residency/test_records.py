"""The residency machine's events can be written, read again and replayed."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.residency import (
    Cause,
    Event,
    GatewayReport,
    Lease,
    Load,
    PhaseEntered,
    Problem,
    Residency,
    State,
    Waiting,
    events,
)
from deployments.residency.invariants import validate
from deployments.residency.records import from_json, replay, to_json
from deployments.switchboard.event_log import EventLog
from tests.pure.residency.driver import BROKEN, MODELS, POLICY, Driver

numbers = st.floats(allow_nan=False)
names = st.text()
problems = st.builds(Problem, names, names)
leases = st.builds(Lease, names, names, numbers, st.none() | numbers)
reports = st.builds(
    GatewayReport,
    names,
    st.integers(),
    st.integers(),
    st.dictionaries(st.integers(), st.integers()),
    st.dictionaries(names, st.builds(Waiting, st.integers(), numbers)),
    st.none() | numbers,
)
fields: dict[type, st.SearchStrategy[Any]] = {
    events.Started: st.builds(events.Started, numbers, names),
    events.EngineAdopted: st.builds(events.EngineAdopted, numbers, names, st.integers(), names),
    events.SwitchRequested: st.builds(
        events.SwitchRequested,
        numbers,
        st.none() | names,
        st.sampled_from(Cause),
        st.none() | numbers,
    ),
    events.LeaseRequested: st.builds(events.LeaseRequested, numbers, names, numbers, names),
    events.LeaseRestored: st.builds(events.LeaseRestored, numbers, leases),
    events.LeaseEnded: st.builds(events.LeaseEnded, numbers),
    events.GatewayWatched: st.builds(events.GatewayWatched, numbers, names),
    events.GatewayReported: st.builds(events.GatewayReported, numbers, reports),
    events.Prepared: st.builds(events.Prepared, numbers, names),
    events.PreparationRefused: st.builds(events.PreparationRefused, numbers, names, problems),
    events.EngineUnloaded: st.builds(events.EngineUnloaded, numbers, st.integers()),
    events.EngineVerifying: st.builds(events.EngineVerifying, numbers, st.integers()),
    events.EngineReady: st.builds(events.EngineReady, numbers, st.integers(), names),
    events.EngineLost: st.builds(events.EngineLost, numbers, st.integers(), problems),
    events.Ticked: st.builds(events.Ticked, numbers),
}


def test_every_kind_of_event_is_tried():
    assert set(fields) == set(get_args(Event))


@given(st.one_of(*fields.values()))
def test_event_is_the_same_after_it_was_written(event: Event):
    """On one line, in JSON that is read by others too."""
    line = to_json(event, time="now", boot="b")
    assert "\n" not in line
    assert "\r" not in line
    assert json.loads(line, parse_constant=pytest.fail)["boot"] == "b"
    read = from_json(line)
    assert (type(read), read) == (type(event), event)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "7", '{"kind": "Nothing"}', '{"kind": "Ticked"}', '{"at": 1}']
)
def test_damaged_line_is_refused(line: str):
    with pytest.raises(ValueError, match=r"not an event|Expecting"):
        from_json(line)


# --- the whole state, and doing it again ---


class Recorded(Driver):
    """Writes down what it tells its machine."""

    def __init__(self, log: Callable[[Residency], EventLog], **policy: Any) -> None:
        super().__init__(**policy)
        self.log = log(self.machine)

    def handle(self, event: Event) -> Any:
        self.log.write(event)
        return super().handle(event)


@pytest.fixture
def driver(tmp_path: Path):
    recorded = Recorded(lambda machine: EventLog(tmp_path, machine), idle_unload_s={"c": 50.0})
    yield recorded
    recorded.log.close()


def incident(driver: Driver) -> None:
    """A busy model is left for requests; the next one breaks on its probation, under a lease."""
    driver.serving("a")
    driver.watch()
    driver.report(2, admitting=True, waiting={"b": 40.0}, idle_s=0)
    driver.sleep(100)
    driver.report(0, waiting={"b": 140.0})
    driver.succeed()
    driver.switch("c")
    driver.lease("a", 60, "me")
    driver.succeed()
    driver.engine_lost()
    driver.report(0)
    driver.unloaded()
    driver.load_failed(BROKEN)
    driver.unloaded()
    driver.sleep(400)


def test_replay_ends_where_the_machine_did(driver: Recorded):
    incident(driver)
    *_, last = steps = list(replay(driver.log.last_lines))
    assert last.machine == driver.machine
    loads = [e.model for step in steps for e in step.effects if isinstance(e, Load)]
    assert len(loads) == sum(driver.num_loads.values()) > 4


@pytest.mark.parametrize("num_between", [1, 3, 7])
def test_replay_begins_at_any_whole_state(
    driver: Recorded, monkeypatch: pytest.MonkeyPatch, num_between: int
):
    """Whatever was before it is forgotten, and every state that comes later is the replayed one."""
    monkeypatch.setattr("deployments.switchboard.event_log._NUM_BETWEEN", num_between)
    incident(driver)
    lines = list(driver.log.last_lines)
    states = [n for n, line in enumerate(lines) if json.loads(line)["kind"] == "Residency"]
    assert len(states) >= 5
    for begin, end in pairwise(states):
        *_, last = replay(lines[begin:end])
        assert last.machine == from_json(lines[end])


def test_lines_in_memory_are_bounded_and_hold_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("deployments.switchboard.event_log._NUM_BETWEEN", 10)
    driver = Recorded(lambda machine: EventLog(tmp_path, machine))
    for n in range(95):
        driver.handle(events.GatewayWatched(driver.now, f"gateway-{n}"))
        *_, last = replay(driver.log.last_lines)
        assert last.machine == driver.machine
    assert len(driver.log.last_lines) == 20
    driver.log.close()


def test_file_is_bounded_and_can_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.host.logs.FILE_BYTES", 30_000)
    monkeypatch.setattr("deployments.switchboard.event_log._NUM_BETWEEN", 10)
    driver = Recorded(lambda machine: EventLog(tmp_path, machine))
    for _ in range(1000):
        driver.sleep(1)
        driver.watch()
    driver.log.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert [f.name for f in files] == [f"residency.jsonl{end}" for end in ("", ".1", ".2")]
    assert all(f.stat().st_size <= 30_000 for f in files)
    *_, last = replay(files[0].read_text().splitlines())
    assert last.machine == driver.machine


def test_lines_of_two_machines_in_one_file_are_told_apart():
    """A Switchboard and its successor write side by side for a moment."""
    lines = []
    for boot, model in (("one", "a"), ("two", "b")):
        machine = Residency(MODELS, POLICY, boot=boot)
        lines.append([to_json(machine, boot=boot)])
        lines[-1] += [to_json(events.Started(1.0, model), boot=boot)]
    mixed = [line for pair in zip(*lines, strict=True) for line in pair]
    cut = to_json(events.Ticked(5.0), boot="three")  # whose state is not here
    steps = list(replay([cut, *mixed]))
    assert [step.machine.desired for step in steps] == ["a", "b"]


def test_refused_lease_is_replayed_as_refused():
    machine = Residency(MODELS, POLICY)
    lines = [to_json(machine)]
    for owner in ("me", "you"):
        lines.append(to_json(events.LeaseRequested(1.0, "a", 60.0, owner)))
    first, second = list(replay(lines))
    assert [type(change) for change in second.changes] == []
    assert any(isinstance(change, PhaseEntered) for change in first.changes)
    assert second.machine.held
    assert second.machine.held.owner == "me"


def test_log_that_cannot_be_written_stops_nothing(tmp_path: Path):
    (tmp_path / "logs").write_text("not a folder")
    driver = Recorded(lambda machine: EventLog(tmp_path, machine))
    incident(driver)
    *_, last = replay(driver.log.last_lines)
    assert last.machine == driver.machine
    driver.log.close()


def test_the_log_of_a_real_incident_replays() -> None:
    """Recorded on a real server: an engine is killed (`kill -9`) while it loads, and the old model
    comes back; then the engine that serves is killed, and comes back too."""
    path = Path(__file__).with_name("incidents") / "engine_killed.jsonl"
    phases: dict[str, list[str]] = {}
    for step in replay(path.read_text().splitlines()):
        validate(step.machine)
        for change in step.changes:
            if isinstance(change, PhaseEntered):
                phases.setdefault(change.ticket.cause + " " + change.ticket.id[-2:], []).append(
                    change.phase.value
                )
    leave, load = ["queued", "preparing", "draining", "unloading"], ["loading", "verifying"]
    assert phases == {
        "start -1": ["queued", "preparing", *load, "ready"],
        "admin -2": [*leave, *load, "ready"],
        "admin -3": [*leave, "loading", "unloading", *load, "rolled_back"],
        "recovery -4": ["queued", "unloading", *load, "ready"],
    }
    assert (step.machine.state, step.machine.holder) == (State.SERVING, "qwen-vl")
    assert step.machine.epoch == 5


def test_a_line_that_was_cut_short_is_left_out():
    """A full disk, or a server that was killed while it wrote."""
    lines = [to_json(Residency(MODELS, POLICY)), to_json(events.Started(1.0, "a"))]
    for cut in (lines[1][:-1], lines[1][:20], ""):
        (step,) = replay([*lines, cut])
        assert step.machine.desired == "a"


def _serving() -> Residency:
    driver = Driver()
    driver.serving("a")
    validate(driver.machine)
    return driver.machine


@pytest.mark.parametrize(
    "break_it",
    [
        lambda machine: setattr(machine, "holder", None),
        lambda machine: setattr(machine, "endpoint", None),
        lambda machine: setattr(machine, "desired", "b"),
        lambda machine: setattr(machine, "is_cut", True),
        lambda machine: setattr(machine, "epoch", machine.last_epoch + 1),
        lambda machine: setattr(machine, "epoch", 0) or setattr(machine, "last_epoch", 0),
        lambda machine: setattr(machine, "state", State.UNLOADING),
    ],
    ids=[
        "no holder",
        "no endpoint",
        "another desired",
        "cut",
        "unknown epoch",
        "epoch again",
        "no ticket",
    ],
)
def test_a_broken_machine_is_found(break_it: Callable[[Residency], None]):
    machine = _serving()
    last_epoch = machine.last_epoch
    break_it(machine)
    with pytest.raises(AssertionError):
        validate(machine, last_epoch)
