"""What the Switchboard counts of its switches."""

import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import Metric

from deployments.engine.events import EngineStarted
from deployments.residency import (
    GOLDEN_MISMATCH,
    Cause,
    GatewayReport,
    Phase,
    PhaseEntered,
    Problem,
    State,
    Ticket,
    TicketState,
    Waiting,
)
from deployments.settings import AppArgs, load_settings
from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.metrics import (
    THRASH_WINDOW_S,
    SwitchMetrics,
    cost_s,
    eta_error,
    result_of,
    thrash_ratio,
)
from tests.pure.switchboard.fake_host import FakeReplicas

A, B, C = "qwen-14b", "qwen-coder", "qwen-vl"
pytestmark = pytest.mark.timeout(150)

MISMATCH = Problem(GOLDEN_MISMATCH, "it answers wrongly")


def value(families: list[Metric], name: str, **labels: str) -> float:
    """Over all samples with these labels."""
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def ticket(*history: tuple[Phase, float], source: str | None = A, target: str = B) -> Ticket:
    return Ticket("sw-1", source, target, Cause.REQUEST, 60, list(history))


SWITCH = (
    (Phase.QUEUED, 0.0),
    (Phase.PREPARING, 1.0),
    (Phase.DRAINING, 2.0),
    (Phase.UNLOADING, 4.0),
    (Phase.LOADING, 5.0),
    (Phase.VERIFYING, 9.0),
    (Phase.READY, 10.0),
)


# --- the plain decisions ---


def test_thrash_is_the_share_of_the_window_that_went_into_switching() -> None:
    """What lies before the window does not count, nor what is yet to come."""
    assert thrash_ratio([], 1000, 100) == 0
    assert thrash_ratio([(950, 960), (970, 980)], 1000, 100) == pytest.approx(0.2)
    assert thrash_ratio([(0, 10)], 1000, 100) == 0
    assert thrash_ratio([(890, 910)], 1000, 100) == pytest.approx(0.1)
    assert thrash_ratio([(0, 5000)], 1000, 100) == 1


def test_an_estimate_is_off_to_one_side() -> None:
    assert eta_error(5, 8) == ("late", 3)
    assert eta_error(5, 3.5) == ("early", 1.5)
    assert eta_error(5, 5) == ("early", 0)


def test_a_switch_costs_from_the_last_answer_to_the_first() -> None:
    """Its drain is none of it: the old model still answers."""
    assert cost_s(list(SWITCH)) == 6
    assert cost_s(list(SWITCH[:3])) is None


def test_a_failed_ticket_counts_as_failed_only_if_the_old_model_stopped() -> None:
    """If no request waited any more or the files are wrong, the old model went on serving."""
    failed = (Phase.FAILED, 6.0)
    assert result_of(ticket(*SWITCH[:2], failed), Phase.FAILED) == "refused"
    assert result_of(ticket(*SWITCH[:5], failed), Phase.FAILED) == "failed"
    abandoned = ticket(*SWITCH[:2], failed)
    abandoned.error = Problem("abandoned", "no request waits")
    assert result_of(abandoned, Phase.FAILED) == "abandoned"
    assert result_of(ticket(*SWITCH), Phase.READY) == TicketState.DONE
    assert result_of(ticket(*SWITCH), Phase.ROLLED_BACK) == TicketState.ROLLED_BACK


# --- the counters ---


@pytest.fixture
def metrics() -> SwitchMetrics:
    return SwitchMetrics([A, B, C], now=0)


def test_a_done_switch_is_counted_once_with_its_phases(metrics: SwitchMetrics) -> None:
    """Pair, cause, cost, and by how much its estimate was off."""
    done = ticket(*SWITCH)
    done.estimate_s = 4
    for n in range(len(SWITCH)):
        metrics.entered(PhaseEntered(done, n))
    families = metrics.families(10)
    assert value(families, "llm_backend_switches_total") == 1
    assert value(families, "llm_backend_switches_total", result="done", to=B, **{"from": A}) == 1
    assert value(families, "llm_backend_switch_causes_total", cause="request", to=B) == 1
    assert value(families, "llm_backend_switch_seconds_sum", to=B) == 6
    name = "llm_backend_switch_phase_seconds_sum"
    seconds = {
        phase: value(families, name, phase=phase) for phase, _ in SWITCH if phase != Phase.READY
    }
    assert list(seconds.values()) == [1, 1, 2, 1, 4, 1]
    assert value(families, "llm_backend_switch_eta_error_seconds_sum", direction="late") == 2


def test_a_request_for_the_resident_model_is_no_switch(metrics: SwitchMetrics) -> None:
    """Its ticket is done as it is made."""
    idle = ticket((Phase.QUEUED, 1), (Phase.READY, 1))
    metrics.entered(PhaseEntered(idle, 0))
    metrics.entered(PhaseEntered(idle, 1))
    assert value(metrics.families(2), "llm_backend_switches_total") == 0


def test_the_place_spends_every_second_on_something(metrics: SwitchMetrics) -> None:
    """Draining still serves; the thrash ratio holds what its window saw."""
    for at, state in [
        (10, State.LOADING),
        (14, State.VERIFYING),
        (15, State.SERVING),
        (45, State.DRAINING),
        (50, State.UNLOADING),
    ]:
        metrics.at(state, at)
    families = metrics.families(60)
    name = "llm_backend_place_seconds_total"
    spent = {doing: value(families, name, doing=doing) for doing in ("empty", "switching")}
    assert spent == {"empty": 10, "switching": 15}
    assert value(families, name, doing="serving") == 35
    assert value(families, "llm_backend_thrash_ratio") == pytest.approx(15 / THRASH_WINDOW_S)
    metrics.at(State.SERVING, 60)
    later = metrics.families(60 + THRASH_WINDOW_S)
    assert value(later, "llm_backend_thrash_ratio") == 0
    assert value(later, name) == 60 + THRASH_WINDOW_S


def test_memory_that_does_not_come_back_shows_as_drift(metrics: SwitchMetrics) -> None:
    """Against the first start; without a card there is nothing to show."""
    metrics.started(A, EngineStarted(1, "exec"))
    drift = "llm_backend_gpu_freed_memory_drift_bytes"
    assert drift not in {family.name for family in metrics.families(1)}
    metrics.started(A, EngineStarted(2, "standby", 16_000))
    metrics.started(B, EngineStarted(3, "standby", 15_500))
    metrics.started(A, EngineStarted(3, "wake"))
    families = metrics.families(2)
    assert value(families, drift) == 500
    assert value(families, "llm_backend_gpu_free_before_load_bytes") == 15_500
    starts = "llm_backend_engine_starts_total"
    ways = [value(families, starts, way=way) for way in ("exec", "standby", "wake")]
    assert ways == [1, 2, 1]


def test_series_that_alerts_use_exist_from_the_start(metrics: SwitchMetrics) -> None:
    """`increase()` misses the first event of a series that begins with it."""
    names = {
        (sample.name, sample.labels.get("result"))
        for family in metrics.families(0)
        for sample in family.samples
        if sample.value == 0
    }
    assert ("llm_backend_switches_total", "rolled_back") in names
    for counter in ("golden_failures", "engine_losses", "load_failures"):
        assert (f"llm_backend_{counter}_total", None) in names


def test_families_cross_a_process_border(metrics: SwitchMetrics) -> None:
    families = metrics.families(5)
    assert pickle.loads(pickle.dumps(families)) == families  # noqa: S301


# --- in the Switchboard ---


@pytest.fixture
def host() -> FakeReplicas:
    return FakeReplicas()


@pytest.fixture
async def board(tmp_path: Path, host: FakeReplicas) -> AsyncIterator[Switchboard]:
    settings = load_settings(AppArgs(profile="cpu-demo", home=str(tmp_path)), has_gpu=False)
    board = Switchboard(settings.model_copy(update={"default_model": A}), host)
    await board.begin_switch(A, 0, 5)
    yield board
    await board.close()


async def count(board: Switchboard, name: str, **labels: str) -> float:
    return value(await board.metrics(), name, **labels)


async def test_switches_and_leases_move_their_counters(board: Switchboard) -> None:
    """Over the Switchboard's own doors."""
    await board.begin_switch(B, 0, 5)
    await board.lease(C, 60, "renders")
    machine = board._runner.machine
    await board._runner.until(lambda: machine.holder == C and machine.running is None, 5)
    switches = "llm_backend_switches_total"
    pairs = [("none", A), (A, B), (B, C)]
    for old, new in pairs:
        assert await count(board, switches, result="done", to=new, **{"from": old}) == 1
    assert await count(board, switches) == 3
    causes = "llm_backend_switch_causes_total"
    assert await count(board, causes, cause="admin") == 2  # one joined that of the start
    assert await count(board, causes, cause="lease") == await count(board, causes, to=C) == 1
    assert await count(board, causes) == 3
    assert await count(board, "llm_backend_leases_total", model=C) == 1
    await board.end_lease()
    assert await count(board, "llm_backend_leases_total") == 1
    await board.lease(C, 60, "renders")  # of the model that serves: granted at once
    assert await count(board, "llm_backend_leases_total", model=C) == 2
    assert await count(board, "llm_backend_place_seconds_total", doing="serving") > 0


async def test_golden_failures_and_a_rollback_are_counted(
    board: Switchboard, host: FakeReplicas
) -> None:
    """A wrong answer earns one restart; both are failures, the switch is one rollback."""
    host.faults[B].extend([MISMATCH, MISMATCH])
    assert (await board.begin_switch(B, 0, 5))["state"] == "rolled_back"
    assert await count(board, "llm_backend_golden_failures_total", model=B) == 2
    assert await count(board, "llm_backend_load_failures_total", model=B) == 2
    assert await count(board, "llm_backend_engine_losses_total") == 0
    assert await count(board, "llm_backend_switches_total", result="rolled_back") == 1


async def test_an_engine_that_dies_serving_is_a_loss(
    board: Switchboard, host: FakeReplicas
) -> None:
    """One that is put out is none."""
    assert (await board.begin_switch(B, 0, 5))["state"] == "done"
    assert await count(board, "llm_backend_engine_losses_total") == 0
    host.lose(B)
    await board._runner.until(lambda: host.loads[-2:] == [B, B], 5)
    assert await count(board, "llm_backend_engine_losses_total", model=B) == 1
    assert await count(board, "llm_backend_load_failures_total") == 0


async def test_a_switch_whose_requests_have_left_is_no_failure(
    board: Switchboard, host: FakeReplicas
) -> None:
    """The request that it was made for has left."""
    await board.watch("gateway", None)
    host.prepare_.clear()
    await board.report(GatewayReport("gateway", 1, 0, {}, {B: Waiting(1, 1000.0)}))
    await board.report(GatewayReport("gateway", 2, 0, {}, {}))
    host.prepare_.set()
    name = "llm_backend_switches_total"
    await board._runner.until(lambda: board._runner.machine.running is None, 5)
    assert await count(board, name, result="abandoned") == 1
    assert await count(board, name, result="failed") == 0
