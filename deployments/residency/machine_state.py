"""Everything the machine remembers. `machine.py` changes it; others only read it."""

from dataclasses import dataclass

from deployments.residency.failures import Failure, FailureLog
from deployments.residency.gateways import GatewayLedger
from deployments.residency.leases import Lease, LeaseBook
from deployments.residency.scheduler import Scheduler
from deployments.residency.switch_rule import Costs, SwitchRule
from deployments.residency.tickets import Ticket, TicketQueue
from deployments.residency.types import Policy, State


@dataclass(init=False, repr=False)
class MachineState:
    """Who holds the GPU, and the ledgers of tickets, gateways, leases, failures and costs.

    All times are seconds of one clock. `records.py` writes every field under its name.
    """

    models: list[str]
    policy: Policy
    epoch: int  # the engine's number; grows with every load
    state: State
    holder: str | None  # the model whose engine is in the place
    endpoint: str | None  # the engine's socket, from when the engine serves until it is gone
    serving_since: float
    desired: str | None  # the model that a restart of everything loads
    is_cut: bool  # the drain deadline has passed: gateways end the requests in flight
    tickets: TicketQueue
    gateways: GatewayLedger
    leases: LeaseBook
    failed: FailureLog
    scheduler: Scheduler
    last_epoch: int  # the newest; `epoch` is less if an adopted engine is of an older load
    _on_probation: tuple[Ticket, float] | None  # the ticket of the last load, and when it was ready
    _drain_deadline: float
    answer_deadline: float | None  # for the effect that the running switch waits for

    def __init__(self, models: list[str], policy: Policy, epoch: int = 0, boot: str = "0") -> None:
        self.models = models
        self.policy = policy
        self.epoch = self.last_epoch = epoch
        self.state = State.EMPTY
        self.holder = self.endpoint = self.desired = None
        self.serving_since = self._drain_deadline = 0.0
        self.is_cut = False
        self.tickets = TicketQueue(boot)
        self.gateways = GatewayLedger(policy.gateway_ttl_s)
        self.leases = LeaseBook()
        self.failed = FailureLog(policy.failed_retry_s, policy.retry_limit_s)
        self.scheduler = Scheduler(
            SwitchRule(len(models), policy.max_wait_s, policy.min_resident_s)
        )
        self._on_probation = None
        self.answer_deadline = None

    def __repr__(self) -> str:
        running = self.running and f"{self.running.id} {self.running.phase}"
        return (
            f"<Residency {self.state} {self.holder} epoch={self.epoch} running={running} "
            f"queued={len(self.queue)} in_flight={self.num_in_flight()}>"
        )

    @property
    def running(self) -> Ticket | None:
        return self.tickets.running

    @property
    def queue(self) -> list[Ticket]:
        return self.tickets.queued

    @property
    def held(self) -> Lease | None:
        """The lease, whether or not its time has started."""
        return self.leases.held

    @property
    def failures(self) -> dict[str, Failure]:
        """Model -> its last failed load, while it has not succeeded since."""
        return self.failed.by_model

    @property
    def costs(self) -> Costs:
        """The seconds that switches took."""
        return self.scheduler.costs

    def num_in_flight(self) -> int:
        """Requests in flight under the present epoch, as far as gateways have reported."""
        return self.gateways.in_flight(self.epoch)

    def is_resident(self, model: str | None) -> bool:
        """Whether `model` serves; for None, whether the place is empty."""
        if model is None:
            return self.state is State.EMPTY
        return self.holder == model and self.state is State.SERVING
