"""Keeps the last tickets, and turns the machine's changes into events for admins."""

import logging
import time
from collections import deque
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from deployments.residency import (
    Change,
    Lease,
    LeaseChanged,
    LoadFailed,
    Phase,
    PhaseEntered,
    Residency,
    Ticket,
    TicketState,
)
from deployments.residency.outlook import waits_for
from deployments.switchboard.messages import Event, EventPage, LeaseView, lease_json, ticket_json
from deployments.switchboard.metrics import SwitchMetrics

logger = logging.getLogger("llm_backend.switchboard")

_NUM_TICKETS = 200
_NUM_SAVED = 50
_NUM_EVENTS = 1000
_NUM_ON_A_PAGE = 100

_OVER = [state for state in TicketState if state.is_over]
_ORDER = (PhaseEntered, LoadFailed, LeaseChanged)  # the order in which they appear


@dataclass
class History:
    """The last tickets and events since the Switchboard's start."""

    boot: str
    metrics: SwitchMetrics
    switch_s: float = 0.0  # seconds that the switch to the present engine took
    lease: LeaseView | None = None
    _tickets: dict[str, Ticket] = field(default_factory=dict)  # the oldest first
    _past: dict[str, dict[str, Any]] = field(default_factory=dict)  # tickets of earlier boots
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=_NUM_EVENTS))
    _num_events: int = 0

    def recall(self, tickets: Iterable[dict[str, Any]]) -> None:
        """Take over the tickets of an earlier boot, as JSON. A ticket that had not ended becomes a
        failed one, because the restart ended its switch."""
        for ticket in tickets:
            self._past[ticket["id"]] = ticket if ticket.get("state") in _OVER else _lost(ticket)

    def observe(self, machine: Residency, now: float) -> None:
        """Record what the machine did since the last call."""
        for change in sorted(machine.take_changes(), key=_order):
            match change:
                case PhaseEntered():
                    self._observe_phase(machine, change)
                case LoadFailed(model, problem):
                    self.add_event(
                        "failure", model=model, code=problem.code, message=problem.message
                    )
                case LeaseChanged(lease):
                    self.lease = _lease_view(lease, now) if lease else None
                    self.add_event("lease", lease=lease_json(self.lease))
                    if lease and lease.until is not None:  # granted: its model serves
                        self.metrics.leased(lease.model)
        self.metrics.at(machine.state, now)

    def add_event(self, kind: str, **data: Any) -> None:
        """Add one event, for admins and for the log."""
        logger.info(kind, extra=_log_fields(kind, data))
        self._num_events += 1
        self._events.append(Event(self._num_events, kind, data))

    def ticket(self, ticket_id: str) -> Ticket | None:
        return self._tickets.get(ticket_id)

    def past_ticket(self, ticket_id: str) -> dict[str, Any] | None:
        """A ticket of an earlier boot, as clients see it."""
        return self._past.get(ticket_id)

    def tickets(self, limit: int) -> list[Ticket]:
        """The last tickets of this boot, newest first."""
        return list(self._tickets.values())[: -limit - 1 : -1]

    def past_tickets(self, limit: int) -> list[dict[str, Any]]:
        """The last tickets of earlier boots, newest first."""
        return list(self._past.values())[::-1][: max(0, limit)]

    def to_save(self) -> tuple[dict[str, Any], ...]:
        """The last tickets for the next boot, the oldest first. Each is given as it was when it
        entered its phase, so that the passing of time changes nothing to save."""
        own = [
            ticket_json(ticket, ticket.history[-1][1]) for ticket in self.tickets(_NUM_SAVED)[::-1]
        ]
        return (*self.past_tickets(_NUM_SAVED - len(own))[::-1], *own)

    @property
    def position(self) -> tuple[str, int]:
        """The boot and the number of the newest event."""
        return self.boot, self._num_events

    def page(self, after: tuple[str, int] | None) -> EventPage:
        """The events after a position; after None, an empty page before the events to come."""
        if after is None:
            return EventPage(self.boot, self._num_events, [], has_gap=False)
        boot, number = after
        num_forgotten = self._num_events - len(self._events)
        has_gap = boot != self.boot or not num_forgotten <= number <= self._num_events
        if has_gap:
            number = num_forgotten
        events = [e for e in self._events if e.number > number][:_NUM_ON_A_PAGE]
        return EventPage(self.boot, number + len(events), events, has_gap)

    def _observe_phase(self, machine: Residency, change: PhaseEntered) -> None:
        """Add an event with the ticket as it was when it entered the phase."""
        ticket, phase, n = change.ticket, change.phase, change.n
        self._keep(ticket)
        then = copy(ticket)
        then.history = ticket.history[: n + 1]
        is_now = ticket is machine.running and n == len(ticket.history) - 1
        reasons = waits_for(machine) if is_now else None
        self.add_event("switch", **ticket_json(then, change.at, reasons))
        self.metrics.entered(change)
        has_loaded = n and ticket.history[n - 1][0] in (Phase.LOADING, Phase.VERIFYING)
        if phase in (Phase.READY, Phase.ROLLED_BACK) and has_loaded:
            began = next(at for phase, at in ticket.history if phase is not Phase.QUEUED)
            self.switch_s = change.at - began

    def _keep(self, ticket: Ticket) -> None:
        self._tickets.setdefault(ticket.id, ticket)
        while len(self._tickets) > _NUM_TICKETS:
            del self._tickets[next(iter(self._tickets))]


def _order(change: Change) -> int:
    return _ORDER.index(type(change))


def _lost(ticket: dict[str, Any]) -> dict[str, Any]:
    """The failed form of a ticket whose switch a restart has ended."""
    error = {
        "message": "the Switchboard restarted during this switch; `GET /health` names the resident "
        "model",
        "type": "server_error",
        "param": None,
        "code": "switchboard_restarted",
    }
    ended: dict[str, Any] = {
        "state": TicketState.FAILED,
        "phase": Phase.FAILED,
        "eta_s": None,
        "waits_for": {},
    }
    return ticket | ended | {"error": error}


def _lease_view(lease: Lease, now: float) -> LeaseView:
    until = None if lease.until is None else time.time() + lease.until - now
    return LeaseView(lease.model, lease.owner, lease.seconds, until)


def _log_fields(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """An event's data under the field names of our logs; `logging` itself uses `message`."""
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
