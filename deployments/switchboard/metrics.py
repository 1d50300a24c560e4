"""Counts switches for Prometheus: their causes, costs and results.

The counts begin at zero with each start of the Switchboard. A gateway fetches them for its metrics
page.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily

from deployments.engine.events import EngineStarted, StartWay
from deployments.residency import (
    GOLDEN_MISMATCH,
    Cause,
    Phase,
    PhaseEntered,
    Problem,
    State,
    Ticket,
    TicketState,
)

# The `_created` series would be half of the page, and no dashboard or alert uses them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
NOTHING = "none"  # the label of an empty place
THRASH_WINDOW_S = 600.0
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_ENDS = [state for state in TicketState if state.is_over]
_AT_WORK = {Phase.UNLOADING, Phase.LOADING}  # from the first of these on, no model answers
_DOING = {
    State.EMPTY: "empty",
    State.SERVING: "serving",
    State.DRAINING: "serving",  # the engine still works on the requests in flight
    State.LOST: "switching",
    State.UNLOADING: "switching",
    State.LOADING: "switching",
    State.VERIFYING: "switching",
}


def result_of(ticket: Ticket, phase: Phase) -> str:
    """How a ticket ended whose last phase is `phase`: its state, or `abandoned` if no request
    waited any more, or `refused` if it failed while the old model went on serving."""
    if phase is not Phase.FAILED:
        return phase.state
    if ticket.error and ticket.error.code == "abandoned":
        return "abandoned"
    return "failed" if _AT_WORK & {p for p, _ in ticket.history} else "refused"


def cost_s(history: list[tuple[Phase, float]]) -> float | None:
    """Seconds from the old model's last possible answer to the ticket's end; None if the old model
    went on serving."""
    began = next((at for phase, at in history if phase in _AT_WORK), None)
    return None if began is None else history[-1][1] - began


def eta_error(estimate_s: float, actual_s: float) -> tuple[str, float]:
    """Whether the switch ended `late` or `early` by its estimate, and by how many seconds."""
    return ("late" if actual_s > estimate_s else "early"), abs(actual_s - estimate_s)


def thrash_ratio(spans: Iterable[tuple[float, float]], now: float, window_s: float) -> float:
    """The share of the last `window_s` that lies in `spans` (begin, end), which do not overlap."""
    since = now - window_s
    spent_s = sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in spans)
    return spent_s / window_s


class SwitchMetrics:
    """The counters and histograms, in a registry of their own. Times are the machine's."""

    def __init__(self, targets: list[str], now: float) -> None:
        self._registry = CollectorRegistry()
        self._doing = _DOING[State.EMPTY]
        self._doing_since = self._told_at = now
        self._switching: deque[tuple[float, float]] = deque()  # spans of switching in the window
        self._first_free_bytes: int | None = None
        self._free_bytes: int | None = None
        self._switches = self._counter(
            "llm_backend_switches",
            "Switches that ended, by old model, new model and result. A switch whose engine dies "
            "within probation_s counts as done first, and then as rolled back.",
            ["from", "to", "result"],
        )
        self._causes = self._counter(
            "llm_backend_switch_causes",
            "Switches that ended, by new model and cause.",
            ["to", "cause"],
        )
        self._phases = self._histogram(
            "llm_backend_switch_phase_seconds",
            "Seconds that switches spent in each phase.",
            ["phase"],
        )
        self._costs = self._histogram(
            "llm_backend_switch_seconds",
            "Seconds of each completed switch in which no model could answer.",
            ["from", "to"],
        )
        self._eta_errors = self._histogram(
            "llm_backend_switch_eta_error_seconds",
            "Seconds by which a switch took longer or shorter than estimated at its start.",
            ["direction"],
        )
        self._place = self._counter(
            "llm_backend_place_seconds",
            "Seconds the GPU spent serving, switching or empty.",
            ["doing"],
        )
        self._thrash = Gauge(
            "llm_backend_thrash_ratio",
            f"Share of the last {THRASH_WINDOW_S:.0f} seconds that the GPU spent switching models.",
            registry=self._registry,
        )
        self._golden_failures = self._counter(
            "llm_backend_golden_failures",
            "Engines ended because of a wrong answer to their known question.",
            ["model"],
        )
        self._losses = self._counter(
            "llm_backend_engine_losses",
            "Engines that died or were stopped as broken while they served.",
            ["model"],
        )
        self._load_failures = self._counter(
            "llm_backend_load_failures", "Engines that failed before they served.", ["model"]
        )
        self._starts = self._counter(
            "llm_backend_engine_starts",
            "Engines started, by way: standby (by the fork server), exec (as a new program), or "
            "wake (from sleep).",
            ["model", "way"],
        )
        self._load_steps = Gauge(
            "llm_backend_load_step_seconds",
            "Seconds of each step of a model's last load, from its engine's log.",
            ["model", "step"],
            registry=self._registry,
        )
        self._leases = self._counter("llm_backend_leases", "Leases granted, by model.", ["model"])
        self._begin_at_zero(targets)

    def entered(self, change: PhaseEntered) -> None:
        """Count the phase that ended, and the switch if the new phase is its last."""
        ticket, phase = change.ticket, change.phase
        history = ticket.history[: change.n + 1]
        if change.n and not history[-2][0].is_last:
            before, since = history[-2]
            self._phases.labels(before).observe(change.at - since)
        if not phase.is_last:
            return
        is_idle = phase is Phase.READY and change.n == 1  # the target served already
        if is_idle:
            return
        pair = (ticket.source or NOTHING, ticket.target or NOTHING)
        self._switches.labels(*pair, result_of(ticket, phase)).inc()
        self._causes.labels(pair[1], ticket.cause).inc()
        seconds = cost_s(history)
        if phase is Phase.READY and seconds is not None:
            self._costs.labels(*pair).observe(seconds)
            if ticket.estimate_s is not None:
                direction, off_s = eta_error(ticket.estimate_s, seconds)
                self._eta_errors.labels(direction).observe(off_s)

    def at(self, state: State, now: float) -> None:
        """Note that the place is in `state` from `now` on."""
        self._spend(now)
        if self._doing == _DOING[state]:
            return
        if self._doing == "switching":
            self._switching.append((self._doing_since, now))
        self._doing, self._doing_since = _DOING[state], now

    def started(self, target: str, engine: EngineStarted) -> None:
        """Count an engine whose process runs."""
        self._starts.labels(target, engine.way).inc()
        if engine.free_bytes is not None:
            self._first_free_bytes = self._first_free_bytes or engine.free_bytes
            self._free_bytes = engine.free_bytes

    def load_took(self, target: str, steps: Mapping[str, float]) -> None:
        """An engine is ready; `steps` are empty where it was woken."""
        for step, seconds in steps.items():
            self._load_steps.labels(target, step).set(seconds)

    def lost(self, target: str, problem: Problem, *, has_served: bool) -> None:
        """Count an engine that is gone although it was not to be unloaded."""
        (self._losses if has_served else self._load_failures).labels(target).inc()
        if problem.code == GOLDEN_MISMATCH:
            self._golden_failures.labels(target).inc()

    def leased(self, target: str) -> None:
        """Count a lease that was granted."""
        self._leases.labels(target).inc()

    def families(self, now: float) -> list[Metric]:
        """All counts, up to `now`."""
        self._spend(now)
        while self._switching and self._switching[0][1] < now - THRASH_WINDOW_S:
            self._switching.popleft()
        running = [(self._doing_since, now)] if self._doing == "switching" else []
        self._thrash.set(thrash_ratio([*self._switching, *running], now, THRASH_WINDOW_S))
        return [*self._registry.collect(), *self._memory_families()]

    def _memory_families(self) -> Iterator[Metric]:
        """The card's memory before loads; nothing where there is no card."""
        if self._free_bytes is None or self._first_free_bytes is None:
            return
        yield GaugeMetricFamily(
            "llm_backend_gpu_free_before_load_bytes",
            "Free memory of the GPU before the last engine start; sleeping engines hold some too.",
            value=self._free_bytes,
        )
        yield GaugeMetricFamily(
            "llm_backend_gpu_freed_memory_drift_bytes",
            "Bytes by which less GPU memory was free before the last engine start than before the "
            "first: memory that unloads did not give back.",
            value=self._first_free_bytes - self._free_bytes,
        )

    def _spend(self, now: float) -> None:
        self._place.labels(self._doing).inc(max(0.0, now - self._told_at))
        self._told_at = now

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=_BUCKETS)

    def _begin_at_zero(self, targets: list[str]) -> None:
        """Make every series with the value 0, so that Prometheus sees its first event as a rise."""
        for target in targets:
            for counter in (self._golden_failures, self._losses, self._load_failures, self._leases):
                counter.labels(target)
            for way in get_args(StartWay):
                self._starts.labels(target, way)
        places = [*targets, NOTHING]
        for old, new in product(places, places):
            for result in (*_ENDS, "refused", "abandoned"):
                self._switches.labels(old, new, result)
        for new, cause in product(places, Cause):
            self._causes.labels(new, cause)
        for phase in [phase for phase in Phase if not phase.is_last]:
            self._phases.labels(phase)
        for direction in ("late", "early"):
            self._eta_errors.labels(direction)
        for doing in set(_DOING.values()):
            self._place.labels(doing)
