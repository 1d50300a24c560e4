"""Plays the Switchboard for the residency machine: keeps its clock, answers its effects.

Each of its methods hands the machine one event, under a short name for tests. After each event the
machine is valid, and what it did is in its transition table.
"""

from dataclasses import replace
from typing import Any

from deployments.residency import (
    Cause,
    Effect,
    Event,
    GatewayReport,
    Lease,
    Load,
    Policy,
    Prepare,
    Problem,
    Residency,
    State,
    Ticket,
    Unload,
    Waiting,
    events,
)
from deployments.residency.invariants import validate
from tests.pure.residency.transitions import Row, explain

MODELS = ["a", "b", "c"]
POLICY = Policy(
    drain_timeout_s=60.0,
    max_wait_s=120.0,
    min_resident_s=10.0,
    probation_s=5.0,
    failed_retry_s=15.0,
    gateway_ttl_s=15.0,
)
BROKEN = Problem("engine_ended", "the engine ended")
REFUSAL = Problem("checkpoint_missing", "the weights are not there")


class Driver:
    """A machine, its time, and the effects it waits for. Each answer takes one of them."""

    def __init__(self, epoch: int = 0, **policy: Any) -> None:
        self.now = 1000.0
        self.machine = Residency(MODELS, replace(POLICY, **policy), epoch)
        self.unanswered: list[Effect] = []
        self.num_loads = {model: 0 for model in MODELS}
        self.observed: set[Row] = set()  # rows of the table that alone explain what an event did
        self._seq: dict[str, int] = {}

    def handle(self, event: Event) -> Ticket | None:
        machine, state, last_epoch = self.machine, self.machine.state, self.machine.last_epoch
        ticket = machine.handle(event)
        validate(machine, last_epoch)
        effects = machine.take_effects()
        rows = explain(state, event, machine.state, effects)
        if len(rows) == 1:
            self.observed.update(rows)
        self.unanswered += effects
        for effect in effects:
            if isinstance(effect, Load):
                self.num_loads[effect.model] += 1
        return ticket

    # --- what the Switchboard does ---

    def serving(self, model: str) -> "Driver":
        """Bring `model` up, and let its probation pass."""
        self.start(model)
        self.succeed()
        self.sleep(self.machine.policy.probation_s + self.machine.policy.min_resident_s)
        return self

    def start(self, model: str) -> None:
        self.handle(events.Started(self.now, model))

    def adopt(self, model: str, epoch: int) -> None:
        self.handle(events.EngineAdopted(self.now, model, epoch, f"/run/{model}-{epoch}.sock"))

    def switch(
        self, target: str | None, cause: Cause = Cause.ADMIN, drain_timeout_s: float | None = None
    ) -> Ticket:
        ticket = self.handle(events.SwitchRequested(self.now, target, cause, drain_timeout_s))
        assert ticket
        return ticket

    def succeed(self) -> None:
        """Answer everything well until nothing is asked any more; gateways drain at once."""
        while self.unanswered or self.machine.state is State.DRAINING:
            match self.unanswered[0] if self.unanswered else None:
                case None:
                    for gateway in self._seq:
                        self.report(0, gateway=gateway)
                case Prepare():
                    self.prepared()
                case Unload():
                    self.unloaded()
                case Load(epoch):
                    self.verifying(epoch)
                    self.ready()

    def lease(self, model: str, seconds: float = 60, owner: str = "me") -> Ticket:
        ticket = self.handle(events.LeaseRequested(self.now, model, seconds, owner))
        assert ticket
        return ticket

    def restore_lease(self, lease: Lease) -> None:
        self.handle(events.LeaseRestored(self.now, lease))

    def end_lease(self) -> None:
        self.handle(events.LeaseEnded(self.now))

    def prepared(self, ticket_id: str | None = None) -> None:
        """The switch that is asked to be prepared is; or a late answer for another comes."""
        ticket_id = ticket_id or self._take(Prepare).ticket_id
        self.handle(events.Prepared(self.now, ticket_id))

    def refused(self, problem: Problem = REFUSAL, ticket_id: str | None = None) -> None:
        ticket_id = ticket_id or self._take(Prepare).ticket_id
        self.handle(events.PreparationRefused(self.now, ticket_id, problem))

    def unloaded(self, epoch: int | None = None) -> None:
        epoch = self._take(Unload).epoch if epoch is None else epoch
        self.handle(events.EngineUnloaded(self.now, epoch))

    def verifying(self, epoch: int) -> None:
        self.handle(events.EngineVerifying(self.now, epoch))

    def ready(self, epoch: int | None = None) -> None:
        epoch = self._take(Load).epoch if epoch is None else epoch
        socket = f"/run/{self.machine.holder}-{epoch}.sock"
        self.handle(events.EngineReady(self.now, epoch, socket))

    def load_failed(self, problem: Problem = BROKEN) -> None:
        self.engine_lost(problem, self._take(Load).epoch)

    def engine_lost(self, problem: Problem = BROKEN, epoch: int | None = None) -> None:
        """The engine that serves or drains dies."""
        epoch = self.machine.epoch if epoch is None else epoch
        self.handle(events.EngineLost(self.now, epoch, problem))

    def tick(self) -> None:
        self.handle(events.Ticked(self.now))

    def sleep(self, seconds: float) -> None:
        """Let time pass as the Switchboard does: woken at each deadline, and at no other time."""
        end = self.now + seconds
        while (deadline := self.machine.next_deadline(self.now)) is not None and deadline <= end:
            self.now = deadline
            self.tick()
        self.now = end

    # --- what gateways do ---

    def watch(self, gateway: str = "gateway") -> None:
        self.handle(events.GatewayWatched(self.now, gateway))

    def report(
        self,
        in_flight: int = 0,
        *,
        admitting: bool = False,
        waiting: dict[str, float] | None = None,
        gateway: str = "gateway",
        seq: int | None = None,
        idle_s: float | None = None,
    ) -> None:
        """`in_flight` under the present epoch; `waiting`: model -> seconds its oldest waits;
        `idle_s`: since its last request began or ended."""
        epoch = self.machine.epoch
        self._seq[gateway] = self._seq.get(gateway, 0) + 1
        report = GatewayReport(
            gateway,
            self._seq[gateway] if seq is None else seq,
            epoch - 1 if admitting else epoch,
            {epoch: in_flight},
            {model: Waiting(1, age) for model, age in (waiting or {}).items()},
            idle_s,
        )
        self.handle(events.GatewayReported(self.now, report))

    def _take(self, kind: type) -> Effect:  # type: ignore[type-arg]
        assert [type(e) for e in self.unanswered] == [kind], self.unanswered
        return self.unanswered.pop()
