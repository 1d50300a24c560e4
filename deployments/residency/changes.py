"""What the machine did, as values; the machine hands them out beside its effects."""

from dataclasses import dataclass

from deployments.residency.leases import Lease
from deployments.residency.tickets import Ticket
from deployments.residency.types import Phase, Problem


@dataclass(frozen=True)
class PhaseEntered:
    """A ticket has entered the phase at index `n` of its history."""

    ticket: Ticket  # the machine's own: it may have entered later phases since
    n: int

    @property
    def phase(self) -> Phase:
        return self.ticket.history[self.n][0]

    @property
    def at(self) -> float:
        return self.ticket.history[self.n][1]


@dataclass(frozen=True)
class LoadFailed:
    """A load of `model` failed, or was refused before it started."""

    model: str
    problem: Problem


@dataclass(frozen=True)
class LeaseChanged:
    """The lease was taken, granted, changed or ended."""

    lease: Lease | None


Change = PhaseEntered | LoadFailed | LeaseChanged
