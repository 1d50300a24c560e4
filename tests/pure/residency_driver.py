"""Plays the Switchboard for the residency machine: keeps its clock, answers its effects."""

from dataclasses import replace
from typing import Any

from deployments.residency import (
    Cause,
    Effect,
    GatewayReport,
    Load,
    Policy,
    Prepare,
    Problem,
    Residency,
    State,
    Ticket,
    Unload,
    Waiting,
)

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
        self._seq: dict[str, int] = {}

    # --- what the Switchboard does ---

    def collect(self) -> list[Effect]:
        """Take the machine's new decisions; returns all that are unanswered."""
        for effect in self.machine.take_effects():
            self.unanswered.append(effect)
            if isinstance(effect, Load):
                self.num_loads[effect.model] += 1
        return self.unanswered

    def serving(self, model: str) -> "Driver":
        """Bring `model` up, and let its probation pass."""
        self.machine.start(self.now, model)
        self.succeed()
        self.sleep(self.machine.policy.probation_s + self.machine.policy.min_resident_s)
        return self

    def switch(
        self, target: str | None, cause: Cause = Cause.ADMIN, drain_timeout_s: float | None = None
    ) -> Ticket:
        return self.machine.request_switch(self.now, target, cause, drain_timeout_s)

    def succeed(self) -> None:
        """Answer everything well until nothing is asked any more; gateways drain at once."""
        while self.collect() or self.machine.state is State.DRAINING:
            match self.unanswered[0] if self.unanswered else None:
                case None:
                    for gateway in self._seq:
                        self.report(0, gateway=gateway)
                case Prepare():
                    self.prepared()
                case Unload():
                    self.unloaded()
                case Load(epoch):
                    self.machine.verifying(self.now, epoch)
                    self.ready()

    def lease(self, model: str, seconds: float = 60, owner: str = "me") -> Ticket:
        return self.machine.lease(self.now, model, seconds, owner)

    def prepared(self) -> None:
        self.machine.prepared(self.now, self._take(Prepare).ticket_id)

    def refused(self, problem: Problem = REFUSAL) -> None:
        self.machine.refused(self.now, self._take(Prepare).ticket_id, problem)

    def unloaded(self) -> None:
        self.machine.unloaded(self.now, self._take(Unload).epoch)

    def ready(self) -> None:
        load = self._take(Load)
        self.machine.ready(self.now, load.epoch, f"/run/{load.model}-{load.epoch}.sock")

    def load_failed(self, problem: Problem = BROKEN) -> None:
        self.machine.engine_lost(self.now, self._take(Load).epoch, problem)

    def engine_lost(self, problem: Problem = BROKEN) -> None:
        """The engine that serves or drains dies."""
        self.machine.engine_lost(self.now, self.machine.epoch, problem)

    def sleep(self, seconds: float) -> None:
        """Let time pass as the Switchboard does: woken at each deadline, and at no other time."""
        end = self.now + seconds
        while (deadline := self.machine.next_deadline(self.now)) is not None and deadline <= end:
            self.now = deadline
            self.machine.tick(self.now)
        self.now = end

    # --- what gateways do ---

    def watch(self, gateway: str = "gateway") -> None:
        self.machine.watch(self.now, gateway)

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
            self._seq[gateway] if seq is None else seq,
            epoch - 1 if admitting else epoch,
            {epoch: in_flight},
            {model: Waiting(1, self.now - age) for model, age in (waiting or {}).items()},
            0.0 if idle_s is None else self.now - idle_s,
        )
        self.machine.report(self.now, gateway, report)

    def _take(self, kind: type) -> Effect:  # type: ignore[type-arg]
        effects = self.collect()
        assert [type(e) for e in effects] == [kind], effects
        return effects.pop()
