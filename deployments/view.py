"""What the Switchboard and the gateways tell each other."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deployments.gpu_watch import NO_GPU, GpuState
from deployments.residency import GatewayReport, Phase, State, Ticket, Waiting


@dataclass(frozen=True)
class FailedLoad:
    """The last failed load of a model, while it has not succeeded since."""

    seq: int  # grows with each failure: tells a waiter whether it came before or after
    code: str
    message: str
    retry_after_s: float  # from when it happened


@dataclass(frozen=True)
class LeaseView:
    """`Lease` as it crosses a process border: its end by the wall clock, in seconds since 1970."""

    model: str
    owner: str
    seconds: float
    until: float | None  # None until the model serves

    @property
    def ends_at(self) -> str | None:
        """Its end in ISO 8601, UTC."""
        if self.until is None:
            return None
        return datetime.fromtimestamp(self.until, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class View:
    """The state that gateways act on; immutable, replaced as a whole.

    A gateway admits a request for `holder` if and only if `state` is SERVING, and counts it under
    `epoch` until it has ended.
    """

    boot: str  # changes when the Switchboard restarts
    version: int  # grows with each change within a boot
    state: State
    epoch: int
    holder: str | None
    endpoint: str | None  # path of the engine's Unix socket
    is_cut: bool  # the drain deadline has passed: end what is in flight
    failures: dict[str, FailedLoad] = field(default_factory=dict)
    switch: dict[str, Any] | None = None  # the running ticket
    place_failed: bool = False  # nothing runs, though something should
    switch_s: float = 0.0  # how long the switch took that brought the present epoch
    lease: LeaseView | None = None
    asleep: tuple[str, ...] = ()  # what is kept asleep, the longest first
    gpu: GpuState = NO_GPU

    @property
    def admitting_epoch(self) -> int | None:
        return self.epoch if self.state is State.SERVING else None

    @property
    def closed_epoch(self) -> int:
        """Under this epoch and older ones a gateway with this view admits nobody, now or later."""
        is_open = self.state in (State.LOADING, State.VERIFYING, State.SERVING)
        return self.epoch - 1 if is_open else self.epoch


@dataclass(frozen=True)
class WaitingAges:
    """`Waiting` as it crosses a process border, where clocks differ: an age in seconds."""

    num_requests: int
    oldest_age_s: float


@dataclass(frozen=True)
class GatewayNews:
    """`GatewayReport` as it crosses a process border."""

    gateway: str
    seq: int
    closed_epoch: int
    in_flight: dict[int, int]
    waiting: dict[str, WaitingAges]
    last_active_age_s: float | None = None  # since a request was last in flight; None: never

    def to_report(self, now: float) -> GatewayReport:
        waiting = {
            model: Waiting(w.num_requests, now - w.oldest_age_s)
            for model, w in self.waiting.items()
        }
        age_s = self.last_active_age_s
        last_active = 0.0 if age_s is None else now - age_s
        return GatewayReport(self.seq, self.closed_epoch, self.in_flight, waiting, last_active)


@dataclass(frozen=True)
class Event:
    """Something that an admin may follow; `number` grows by one with each, within a boot."""

    number: int
    kind: str  # switch, engine_lost, failure, lease or gpu_alarm
    data: dict[str, Any]


@dataclass(frozen=True)
class EventPage:
    """A listener's next events, in order, and where it stands with them."""

    boot: str
    last: int  # the number to go on from
    events: list[Event]
    has_gap: bool  # what happened before the first of them is no longer known


def lease_json(lease: LeaseView | None) -> dict[str, Any] | None:
    """A lease as clients see it."""
    if lease is None:
        return None
    return {
        "model": lease.model,
        "owner": lease.owner,
        "seconds": lease.seconds,
        "until": lease.ends_at,
    }


def ticket_json(
    ticket: Ticket, now: float, waits_for: dict[str, int] | None = None
) -> dict[str, Any]:
    """A ticket as clients see it; `phases` gives the seconds spent in each, in order."""
    ends = [at for _, at in ticket.history[1:]] + [now]
    phases = [
        {"phase": phase, "seconds": round(end - at, 3)}
        for (phase, at), end in zip(ticket.history, ends, strict=True)
        if phase not in (Phase.READY, Phase.ROLLED_BACK, Phase.FAILED)
    ]
    finished_at = ticket.history[-1][1] if ticket.is_over else now
    error = ticket.error
    return {
        "id": ticket.id,
        "from": ticket.source,
        "to": ticket.target,
        "state": ticket.outcome,
        "phase": ticket.phase,
        "cause": ticket.cause,
        "error": error
        and {"message": error.message, "type": "server_error", "param": None, "code": error.code},
        "seconds": round(finished_at - ticket.created_at, 3),
        "estimate_s": None if ticket.estimate_s is None else round(ticket.estimate_s, 1),
        "eta_s": _eta_s(ticket, now),
        "waits_for": waits_for or {},
        "phases": phases,
    }


def _eta_s(ticket: Ticket, now: float) -> float | None:
    """What is left of the estimate, which begins as the old engine ends: a drain comes on top."""
    if ticket.estimate_s is None or ticket.is_over or ticket.error:
        return None
    began = (at for phase, at in ticket.history if phase in (Phase.UNLOADING, Phase.LOADING))
    return round(max(0.0, ticket.estimate_s - (now - next(began, now))), 1)
