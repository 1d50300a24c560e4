"""Checks what must be true of the machine after every event; used by tests."""

from deployments.residency.machine import Residency
from deployments.residency.types import Phase, State, TicketState

_STATES = {  # phase of the running ticket -> the states that the place may have
    Phase.PREPARING: (State.EMPTY, State.SERVING, State.LOST),
    Phase.DRAINING: (State.DRAINING,),
    Phase.UNLOADING: (State.UNLOADING,),
    Phase.LOADING: (State.LOADING,),
    Phase.VERIFYING: (State.VERIFYING,),
}
_BOUNDED = (Phase.PREPARING, Phase.LOADING, Phase.VERIFYING)  # the machine itself ends these


def validate(machine: Residency, last_epoch: int = 0) -> None:
    """Raise AssertionError where an invariant is broken.

    `last_epoch` is the machine's at an earlier validation: epochs only grow.
    """
    assert machine.last_epoch >= last_epoch, machine
    _validate_place(machine)
    _validate_tickets(machine)
    held, pending = machine.held, machine.tickets.pending()
    if held and held.until is None:
        assert any(ticket.can_be_joined(held.model) for ticket in pending), machine
    elif held:
        assert machine.holder == held.model or machine.running, machine


def _validate_place(machine: Residency) -> None:
    """Check that the place holds one engine at most, and what else follows from its state."""
    state = machine.state
    assert (machine.holder is None) == (state is State.EMPTY), machine
    if state in (State.EMPTY, State.LOADING, State.VERIFYING):
        assert machine.endpoint is None, machine
    if state in (State.SERVING, State.DRAINING, State.LOST):
        assert machine.endpoint is not None, machine
    if state is State.SERVING:
        assert machine.desired == machine.holder, machine
    if machine.is_cut:  # until the next load
        assert state in (State.DRAINING, State.UNLOADING, State.EMPTY), machine
    assert 0 <= machine.epoch <= machine.last_epoch, machine
    if state in (State.LOADING, State.VERIFYING):  # only an adopted engine may have an older epoch
        assert machine.epoch == machine.last_epoch, machine


def _validate_tickets(machine: Residency) -> None:
    """Check that at most one ticket runs, that none is queued while none runs, and that no two
    queued tickets have the same target."""
    running, queue = machine.running, machine.queue
    if running:
        assert running.state is TicketState.RUNNING, machine
        assert machine.state in _STATES[running.phase], machine
        assert (machine.answer_deadline is not None) == (running.phase in _BOUNDED), machine
    else:
        assert machine.state in (State.EMPTY, State.SERVING), machine
        assert not queue, machine
        assert machine.answer_deadline is None, machine
    assert all(ticket is not running for ticket in queue), machine
    assert all(ticket.state is TicketState.QUEUED for ticket in queue), machine
    assert len({ticket.target for ticket in queue}) == len(queue), machine
    for ticket in machine.tickets.pending():
        times = [at for _, at in ticket.history]
        assert times == sorted(times), ticket
