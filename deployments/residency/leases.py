"""The one lease: the right of an owner to keep a model resident for a time."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Lease:
    """The right of `owner` to keep `model` resident for `seconds` from when it serves."""

    model: str
    owner: str
    seconds: float
    until: float | None = None  # in the machine's time; None until the model serves


class LeaseHeld(Exception):
    """Another owner holds the lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.lease = lease


@dataclass
class LeaseBook:
    """The lease, if an owner has one. It is granted when its model serves."""

    held: Lease | None = None

    def take(self, now: float, lease: Lease) -> None:
        """Hold `lease`, which replaces an earlier lease of the same owner.

        Raises:
            LeaseHeld: another owner has a lease, granted or waiting.
        """
        self.expire(now)
        if self.held and self.held.owner != lease.owner:
            raise LeaseHeld(self.held)
        self.held = lease

    def restore(self, now: float, lease: Lease) -> None:
        """Hold a lease that was granted before a restart, unless its time is over."""
        self.held = lease
        self.expire(now)

    def end(self) -> None:
        self.held = None

    def expire(self, now: float) -> None:
        """End the lease if its time is over."""
        if self.held and self.held.until is not None and now >= self.held.until:
            self.held = None

    def grant(self, now: float) -> None:
        """Start the lease's time: its model serves."""
        if self.held and self.held.until is None:
            self.held = replace(self.held, until=now + self.held.seconds)
