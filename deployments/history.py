"""What has happened: the last tickets, and each step of theirs as an event to be followed."""

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.residency import Lease, Outcome, Phase, Residency, Ticket
from deployments.switch_metrics import SwitchMetrics
from deployments.view import Event, EventPage, LeaseView, lease_json, ticket_json

logger = logging.getLogger("llm_backend.switchboard")

_NUM_TICKETS = 200
_NUM_SAVED = 50
_NUM_EVENTS = 1000
_NUM_ON_A_PAGE = 100

_OUTCOMES = {
    Phase.QUEUED: Outcome.QUEUED,
    Phase.READY: Outcome.DONE,
    Phase.ROLLED_BACK: Outcome.ROLLED_BACK,
    Phase.FAILED: Outcome.FAILED,
}


_OVER = (Outcome.DONE, Outcome.ROLLED_BACK, Outcome.FAILED)


@dataclass
class History:
    """One boot's tickets and events, the oldest forgotten; the Switchboard lets it observe."""

    boot: str
    metrics: SwitchMetrics
    switch_s: float = 0.0  # how long the switch took that brought the present epoch
    lease: LeaseView | None = None
    _tickets: dict[str, Ticket] = field(default_factory=dict)  # the oldest first
    _num_phases: dict[str, int] = field(default_factory=dict)  # of each ticket, told already
    _running: Ticket | None = None
    _held: Lease | None = None
    _last_failure: int = 0
    _past: dict[str, dict[str, Any]] = field(default_factory=dict)  # tickets of earlier boots
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=_NUM_EVENTS))
    _num_events: int = 0

    def keep(self, ticket: Ticket) -> None:
        """Remember a ticket; one that ends as it is made is in no queue to be seen in."""
        self._tickets.setdefault(ticket.id, ticket)
        while len(self._tickets) > _NUM_TICKETS:
            forgotten = next(iter(self._tickets))
            del self._tickets[forgotten]
            self._num_phases.pop(forgotten, None)

    def recall(self, tickets: Iterable[dict[str, Any]]) -> None:
        """Take over the tickets of an earlier boot, with their JSON; one that had not ended then
        never will."""
        for ticket in tickets:
            self._past[ticket["id"]] = ticket if ticket.get("state") in _OVER else _lost(ticket)

    def observe(self, machine: Residency, now: float) -> None:
        """Tell what the machine's last event has changed, in the order it happened."""
        for ticket in [*machine.queue, machine.running]:
            if ticket:
                self.keep(ticket)
        # At one instant the ticket that ran ends before another begins.
        tickets = [*([self._running] if self._running else []), *self._tickets.values()]
        steps = {
            (ticket.id, n): (ticket.history[n][1], ticket, n)
            for ticket in tickets
            for n in range(self._num_phases.get(ticket.id, 0), len(ticket.history))
        }
        for _, ticket, n in sorted(steps.values(), key=lambda step: step[0]):
            self._tell_step(machine, ticket, n)
        for model, failure in sorted(machine.failures.items(), key=lambda item: item[1].seq):
            if failure.seq > self._last_failure:
                self._last_failure = failure.seq
                problem = failure.problem
                self.tell("failure", model=model, code=problem.code, message=problem.message)
        if machine.held != self._held:
            self._held = machine.held
            self.lease = _lease_view(self._held, now) if self._held else None
            self.tell("lease", lease=lease_json(self.lease))
            if self._held and self._held.until is None:
                self.metrics.leased(self._held.model)
        self._running = machine.running
        self.metrics.at(machine.state, now)

    def tell(self, kind: str, **data: Any) -> None:
        """One more event."""
        logger.info(kind, extra=_log_fields(kind, data))
        self._num_events += 1
        self._events.append(Event(self._num_events, kind, data))

    def ticket(self, ticket_id: str) -> Ticket | None:
        return self._tickets.get(ticket_id)

    def past_ticket(self, ticket_id: str) -> dict[str, Any] | None:
        """One of an earlier boot, as clients see it."""
        return self._past.get(ticket_id)

    def tickets(self, limit: int) -> list[Ticket]:
        """The last ones of this boot, newest first."""
        return list(self._tickets.values())[: -limit - 1 : -1]

    def past_tickets(self, limit: int) -> list[dict[str, Any]]:
        """The last ones of earlier boots, newest first."""
        return list(self._past.values())[::-1][: max(0, limit)]

    def to_save(self) -> tuple[dict[str, Any], ...]:
        """What another boot is to know of tickets: the last ones, the oldest first, each as it was
        when it entered its phase, so that time alone changes nothing."""
        own = [
            ticket_json(ticket, ticket.history[-1][1]) for ticket in self.tickets(_NUM_SAVED)[::-1]
        ]
        return (*self.past_tickets(_NUM_SAVED - len(own))[::-1], *own)

    @property
    def position(self) -> tuple[str, int]:
        """Of the newest event."""
        return self.boot, self._num_events

    def page(self, after: tuple[str, int] | None) -> EventPage:
        """The events after a position; after None, those to come."""
        if after is None:
            return EventPage(self.boot, self._num_events, [], has_gap=False)
        boot, number = after
        num_forgotten = self._num_events - len(self._events)
        has_gap = boot != self.boot or not num_forgotten <= number <= self._num_events
        if has_gap:
            number = num_forgotten
        events = [e for e in self._events if e.number > number][:_NUM_ON_A_PAGE]
        return EventPage(self.boot, number + len(events), events, has_gap)

    def _tell_step(self, machine: Residency, ticket: Ticket, n: int) -> None:
        """A ticket as it was when it entered its phase `n`."""
        self._num_phases[ticket.id] = n + 1
        phase, at = ticket.history[n]
        is_now = ticket is machine.running and n == len(ticket.history) - 1
        then = replace(
            ticket,
            phase=phase,
            outcome=_OUTCOMES.get(phase, Outcome.RUNNING),
            history=ticket.history[: n + 1],
        )
        self.tell("switch", **ticket_json(then, at, machine.waits_for() if is_now else None))
        self.metrics.entered(ticket, n)
        has_loaded = n and ticket.history[n - 1][0] in (Phase.LOADING, Phase.VERIFYING)
        if phase in (Phase.READY, Phase.ROLLED_BACK) and has_loaded:
            self.switch_s = at - next(a for p, a in ticket.history if p is not Phase.QUEUED)


def _lost(ticket: dict[str, Any]) -> dict[str, Any]:
    """A ticket that nobody carries out any more."""
    error = {
        "message": "the Switchboard restarted; `GET /health` tells what is resident",
        "type": "server_error",
        "param": None,
        "code": "switchboard_restarted",
    }
    ended: dict[str, Any] = {
        "state": Outcome.FAILED,
        "phase": Phase.FAILED,
        "eta_s": None,
        "waits_for": {},
    }
    return ticket | ended | {"error": error}


def _lease_view(lease: Lease, now: float) -> LeaseView:
    until = None if lease.until is None else time.time() + lease.until - now
    return LeaseView(lease.model, lease.owner, lease.seconds, until)


def _log_fields(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """An event's data under the names that all our logs use; `message` is logging's own."""
    match kind:
        case "switch":
            return {
                "ticket": data["id"],
                "model": data["to"],
                "from": data["from"],
                "phase": data["phase"],
                "cause": data["cause"],
                "seconds": data["seconds"],
                "reason": data["error"] and data["error"]["message"],
            }
        case "engine_lost" | "failure":
            return {"reason" if key == "message" else key: value for key, value in data.items()}
        case _:
            return {"details": data}
