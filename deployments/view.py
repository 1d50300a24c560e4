"""What the Switchboard and the gateways tell each other."""

from dataclasses import dataclass, field
from typing import Any

from deployments.residency import GatewayReport, Phase, State, Ticket, Waiting


@dataclass(frozen=True)
class FailedLoad:
    """The last failed load of a model, while it has not succeeded since."""

    seq: int  # grows with each failure: tells a waiter whether it came before or after
    code: str
    message: str
    retry_after_s: float  # from when it happened


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

    def to_report(self, now: float) -> GatewayReport:
        waiting = {
            model: Waiting(w.num_requests, now - w.oldest_age_s)
            for model, w in self.waiting.items()
        }
        return GatewayReport(self.seq, self.closed_epoch, self.in_flight, waiting)


def ticket_json(ticket: Ticket, now: float) -> dict[str, Any]:
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
        "phases": phases,
    }
