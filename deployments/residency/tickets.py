"""The requested switches. Each has a ticket; at most one ticket runs."""

from dataclasses import dataclass, field

from deployments.residency.types import Cause, Phase, Problem, TicketState


@dataclass
class Ticket:
    """One switch, from its request to its end."""

    id: str
    source: str | None
    target: str | None  # None: unload
    cause: Cause
    drain_timeout_s: float
    history: list[tuple[Phase, float]]  # (phase, entered at), the oldest first; never empty
    error: Problem | None = None
    num_attempts: int = 0  # how often its target was loaded
    is_rolling_back: bool = False
    estimate_s: float | None = None  # seconds without the drain, estimated when the switch begins
    notes: dict[str, object] = field(default_factory=dict)  # for clients; the machine reads none

    @property
    def phase(self) -> Phase:
        return self.history[-1][0]

    @property
    def state(self) -> TicketState:
        """The state that clients see."""
        return self.phase.state

    @property
    def is_over(self) -> bool:
        return self.state.is_over

    @property
    def created_at(self) -> float:
        return self.history[0][1]

    def can_be_joined(self, target: str | None) -> bool:
        """Whether a second request for `target` gets this ticket: not after a failure."""
        return self.target == target and self.error is None


@dataclass
class TicketQueue:
    """The running ticket and the queued ones."""

    boot: str  # makes the ids unique across restarts
    running: Ticket | None = None
    queued: list[Ticket] = field(default_factory=list)
    num_made: int = 0

    def new(
        self, now: float, source: str | None, target: str | None, cause: Cause, drain_s: float
    ) -> Ticket:
        """Make a ticket; the caller puts it into the queue or ends it."""
        self.num_made += 1
        ticket_id = f"sw-{self.boot}-{self.num_made}"
        return Ticket(ticket_id, source, target, cause, drain_s, [(Phase.QUEUED, now)])

    @property
    def is_idle(self) -> bool:
        """Whether no switch runs and none is queued."""
        return self.running is None and not self.queued

    def pending(self) -> list[Ticket]:
        """The running ticket, if there is one, and the queued ones, in order."""
        return [*([self.running] if self.running else []), *self.queued]

    def join(self, target: str | None) -> Ticket | None:
        """The first pending ticket that a request for `target` can join."""
        return next((t for t in self.pending() if t.can_be_joined(target)), None)

    def join_last(self, target: str) -> Ticket | None:
        """A pending ticket to `target` that is the last; a queued ticket is moved to the end."""
        pending = self.pending()
        if pending and pending[-1].can_be_joined(target):
            return pending[-1]
        for ticket in self.queued:
            if ticket.target == target:
                self.queued.remove(ticket)
                self.queued.append(ticket)
                return ticket
        return None

    def finish(self, ticket: Ticket) -> None:
        """Let the next ticket run, if `ticket` is the running one."""
        if self.running is ticket:
            self.running = None
