"""What the Switchboard refuses. Each has a text that is safe to show, and crosses Ray's process
borders by pickle."""


class SwitchboardError(Exception):
    """A call that the Switchboard refuses."""


class UnknownTargetError(SwitchboardError):
    """There is no such model, or it has no such task."""


class UnknownTicketError(SwitchboardError):
    """No switch has this ticket, or it is forgotten."""


class LeaseHeldError(SwitchboardError):
    """Another owner has a lease."""
