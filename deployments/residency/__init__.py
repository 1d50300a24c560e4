"""Decides which model may hold the GPU, and when that changes: a pure state machine.

machine.py        `Residency`: takes events, decides, hands out effects; the table of transitions
machine_state.py  everything the machine remembers
triggers.py       when a switch begins that neither an admin nor a lease asked for
events.py         what happens to the machine
changes.py        what the machine did
types.py          states, phases, causes, policy, effects
tickets.py        the requested switches
gateways.py       requests in flight and waiting, as gateways report them
leases.py         the right of an owner to keep a model resident
failures.py       failed loads, and when they are tried again
scheduler.py      when a switch to a model that requests wait for begins
switch_rule.py    the rule for this, and the proof of its wait bound
outlook.py        what a requested switch would cost and wait for, for admins
invariants.py     what is true after every event
records.py        events and states as JSON lines, and their replay
"""

from deployments.residency import events
from deployments.residency.changes import Change, LeaseChanged, LoadFailed, PhaseEntered
from deployments.residency.events import Event
from deployments.residency.failures import Failure
from deployments.residency.gateways import GatewayReport, Waiting
from deployments.residency.leases import Lease, LeaseHeld
from deployments.residency.machine import Residency
from deployments.residency.tickets import Ticket
from deployments.residency.types import (
    GOLDEN_MISMATCH,
    Cause,
    Effect,
    Load,
    Phase,
    Policy,
    Prepare,
    Problem,
    State,
    TicketState,
    Unload,
    UnloadMode,
)

__all__ = [
    "GOLDEN_MISMATCH",
    "Cause",
    "Change",
    "Effect",
    "Event",
    "Failure",
    "GatewayReport",
    "Lease",
    "LeaseChanged",
    "LeaseHeld",
    "Load",
    "LoadFailed",
    "Phase",
    "PhaseEntered",
    "Policy",
    "Prepare",
    "Problem",
    "Residency",
    "State",
    "Ticket",
    "TicketState",
    "Unload",
    "UnloadMode",
    "Waiting",
    "events",
]
