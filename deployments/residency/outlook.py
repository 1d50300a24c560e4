"""Tells admins what a switch would cost and wait for, and what is in its way. Changes nothing."""

from typing import Any

from deployments.residency.machine import Residency
from deployments.residency.types import State


def estimate_s(machine: Residency, target: str | None) -> float | None:
    """Seconds that a switch to `target` should take from now, without its drain.

    If a switch to another target runs, its seconds count too. None: not measured yet.
    """
    running = machine.running
    if running is None:
        resident = machine.is_resident(target)
        return 0.0 if resident else machine.costs.estimate(machine.holder, target)
    first_s, second_s = running.estimate_s, machine.costs.estimate(running.target, target)
    return None if first_s is None or second_s is None else first_s + second_s


def waits_for(machine: Residency) -> dict[str, int]:
    """What the running switch's drain waits for: requests `in_flight`, and `gateways` that may
    still admit requests."""
    if machine.state is not State.DRAINING:
        return {}
    counts = {
        "in_flight": machine.num_in_flight(),
        "gateways": machine.gateways.num_open(machine.epoch),
    }
    return {reason: num for reason, num in counts.items() if num}


def would_switch(machine: Residency, target: str | None) -> dict[str, Any]:
    """What would happen to an admin's `SwitchRequested` now.

    `blockers` are the lease that the switch would end and the running switch it would wait for.
    """
    running, held, ahead = machine.running, machine.held, machine.tickets.pending()
    joined = next((n for n, t in enumerate(ahead) if t.can_be_joined(target)), len(ahead))
    blockers: list[dict[str, Any]] = []
    if held and held.model != target:
        blockers.append({"kind": "lease", "model": held.model, "owner": held.owner})
    if running and joined != 0:
        blockers.append({"kind": "switch", "ticket": running.id, "to": running.target})
    return {
        "from": machine.holder,
        "to": target,
        "in_flight": machine.num_in_flight(),
        "queued_behind": joined,
        "estimate_s": estimate_s(machine, target),
        "blockers": blockers,
    }
