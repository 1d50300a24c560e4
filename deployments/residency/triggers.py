"""Says when a switch begins that neither an admin nor a lease asked for. Changes nothing.

(1) Requests wait for a model, and `switch_rule.py` says that it is time to leave the serving one.
(2) No request has used the serving model for its idle time.
(3) The place is empty because a load failed, and the pause before the next try is over.
"""

from collections.abc import Iterator
from typing import NamedTuple

from deployments.residency.machine_state import MachineState
from deployments.residency.switch_rule import Demand
from deployments.residency.types import Cause, State


class DueSwitch(NamedTuple):
    """A switch that is to begin now."""

    target: str | None  # None: unload
    cause: Cause
    drain_timeout_s: float


def due_switch(machine: MachineState, now: float) -> DueSwitch | None:
    """The switch to begin while no other runs or is queued."""
    drain_s = machine.policy.drain_timeout_s
    demands = _demands(machine, now)
    if _is_demand_due(machine, now, demands):
        return DueSwitch(demands[0].model, Cause.REQUEST, drain_s)  # (1)
    if _is_idle_due(machine, now):
        return DueSwitch(None, Cause.IDLE, drain_s)  # (2)
    retry_at = machine.failed.next_retry
    if machine.state is State.EMPTY and machine.desired and retry_at is not None:
        return DueSwitch(machine.desired, Cause.RETRY, 0) if now >= retry_at else None  # (3)
    return None


def deadlines(machine: MachineState, now: float) -> Iterator[float]:
    """The times at which `due_switch` may answer differently, if nothing else happens."""
    if machine.failed.next_retry is not None:
        yield machine.failed.next_retry
    for model in machine.gateways.waiting():
        if model in machine.failures:
            yield machine.failures[model].retry_at
    if machine.state is State.SERVING:
        demands = _demands(machine, now)
        if demands and not machine.held:
            yield _switch_at(machine, demands)
        idle_at = _idle_unload_at(machine)
        if idle_at is not None:
            yield idle_at


def _demands(machine: MachineState, now: float) -> list[Demand]:
    """The models that requests wait for, that do not serve and may be loaded; the oldest demand
    first."""
    return machine.scheduler.ranked(
        demand
        for model, demand in machine.gateways.waiting().items()
        if model != machine.holder and machine.failed.may_try(now, model)
    )


def _is_demand_due(machine: MachineState, now: float, demands: list[Demand]) -> bool:
    if not demands or machine.held:
        return False
    if machine.state is State.SERVING:
        return now >= _switch_at(machine, demands)
    return machine.state is State.EMPTY


def _switch_at(machine: MachineState, demands: list[Demand]) -> float:
    assert machine.holder is not None
    waiting = machine.gateways.waiting().get(machine.holder)
    num_requests = machine.num_in_flight() + (waiting.num_requests if waiting else 0)
    since, last_active = machine.serving_since, machine.gateways.last_active
    return machine.scheduler.switch_at(machine.holder, since, num_requests, last_active, demands)


def _is_idle_due(machine: MachineState, now: float) -> bool:
    """Each gateway must have reported since the idle time ended: its silence says nothing about
    its requests."""
    due = _idle_unload_at(machine)
    return due is not None and now >= due and machine.gateways.have_reported_since(due)


def _idle_unload_at(machine: MachineState) -> float | None:
    if machine.state is not State.SERVING or machine.held or machine.holder is None:
        return None
    seconds = machine.policy.idle_unload_s.get(machine.holder)
    since = machine.gateways.idle_since(machine.epoch, machine.holder)
    if seconds is None or since is None:
        return None
    return max(machine.serving_since, since) + seconds
