"""The messages between the Switchboard and the gateways, and their JSON for clients."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deployments.memory.gpu_watch import NO_GPU, GpuState
from deployments.residency import Failure, Phase, State, Ticket


@dataclass(frozen=True)
class LeaseView:
    """A lease with its end by the wall clock, in seconds since 1970."""

    model: str
    owner: str
    seconds: float
    until: float | None  # None until the model serves

    @property
    def ends_at(self) -> str | None:
        """The lease's end in ISO 8601, UTC."""
        if self.until is None:
            return None
        return datetime.fromtimestamp(self.until, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class View:
    """The state that gateways act on. It is immutable and replaced as a whole.

    A gateway admits a request for `holder` if and only if `state` is SERVING, and counts it under
    `epoch` until it has ended.
    """

    boot: str  # changes when the Switchboard restarts
    version: int  # grows with each change; begins anew with each boot
    state: State
    epoch: int
    holder: str | None
    endpoint: str | None  # path of the engine's Unix socket
    is_cut: bool  # the drain deadline has passed: gateways end the requests in flight
    failures: dict[str, Failure] = field(default_factory=dict)
    switch: dict[str, Any] | None = None  # the running ticket
    place_failed: bool = False  # no engine runs, though one should
    switch_s: float = 0.0  # seconds that the switch to the present engine took
    lease: LeaseView | None = None
    asleep: tuple[str, ...] = ()  # the targets whose engines sleep, the longest asleep first
    context_tokens: int | None = None  # what the holder's engine was started with
    gpu: GpuState = NO_GPU

    @property
    def admitting_epoch(self) -> int | None:
        return self.epoch if self.state is State.SERVING else None

    @property
    def closed_epoch(self) -> int:
        """A gateway with this view admits no more requests under this epoch and older ones."""
        is_open = self.state in (State.LOADING, State.VERIFYING, State.SERVING)
        return self.epoch - 1 if is_open else self.epoch


@dataclass(frozen=True)
class Event:
    """One event for admins; `number` counts the events since the Switchboard's start."""

    number: int
    kind: str  # switch, engine_lost, failure, lease or gpu_alarm
    data: dict[str, Any]


@dataclass(frozen=True)
class EventPage:
    """The next events for a listener, in order."""

    boot: str
    last: int  # the listener goes on after this number
    events: list[Event]
    has_gap: bool  # events between the listener's position and these are forgotten


def lease_json(lease: LeaseView | None) -> dict[str, Any] | None:
    """The lease's JSON for clients."""
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
    """The ticket's JSON for clients.

    `phases` gives the seconds spent in each phase, in order; `engine`, of the last engine that the
    switch started: the way (`standby`, `exec`, `wake`), the context in tokens, and the seconds of
    the load's steps.
    """
    ends = [at for _, at in ticket.history[1:]] + [now]
    phases = [
        {"phase": phase, "seconds": round(end - at, 3)}
        for (phase, at), end in zip(ticket.history, ends, strict=True)
        if not phase.is_last
    ]
    finished_at = ticket.history[-1][1] if ticket.is_over else now
    error = ticket.error
    return {
        "id": ticket.id,
        "from": ticket.source,
        "to": ticket.target,
        "state": ticket.state,
        "phase": ticket.phase,
        "cause": ticket.cause,
        "error": error
        and {"message": error.message, "type": "server_error", "param": None, "code": error.code},
        "seconds": round(finished_at - ticket.created_at, 3),
        "estimate_s": None if ticket.estimate_s is None else round(ticket.estimate_s, 1),
        "eta_s": _eta_s(ticket, now),
        "waits_for": waits_for or {},
        "phases": phases,
        "engine": ticket.notes or None,
    }


def _eta_s(ticket: Ticket, now: float) -> float | None:
    """Seconds left of the estimate. It starts when the old engine ends: a drain is not in it."""
    if ticket.estimate_s is None or ticket.is_over or ticket.error:
        return None
    began = (at for phase, at in ticket.history if phase in (Phase.UNLOADING, Phase.LOADING))
    return round(max(0.0, ticket.estimate_s - (now - next(began, now))), 1)
