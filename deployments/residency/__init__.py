"""Decides which model may hold the GPU, and when that changes: a pure state machine."""

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
    Parting,
    Phase,
    Policy,
    Prepare,
    Problem,
    State,
    TicketState,
    Unload,
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
    "Parting",
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
    "Waiting",
    "events",
]
