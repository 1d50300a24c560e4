"""The Switchboard's refusals. Clients see the text of each; pickle carries them between Ray's
processes."""


class SwitchboardError(Exception):
    """A call that the Switchboard refuses."""


class UnknownTargetError(SwitchboardError):
    """The model does not exist, or has no such task."""


class UnknownTicketError(SwitchboardError):
    """No switch has this ticket, or the Switchboard has forgotten it."""


class LeaseHeldError(SwitchboardError):
    """Another owner has a lease."""
