"""The residency machine: takes events, decides, and hands out effects.

Each event is a value with the time it happened at; each decision is an `Effect` that the
Switchboard carries out, answering it with a later event. The machine uses no Ray, no vLLM, no
clock and no I/O, and nothing in it awaits, so every event is atomic.

A model here is a target: a model and the task that its engine is started for. The machine only
compares its name. The GPU's one place holds one engine. This table has every transition of the
place with its effects; the tests compare the table with what the machine does:

    state      event               next state  effects           when
    ---------  ------------------  ----------  ----------------  --------------------------------
    EMPTY      EngineAdopted       SERVING     -
    EMPTY      Prepared            LOADING     Load
    EMPTY      any                 EMPTY       Prepare           a switch begins
    LOADING    EngineVerifying     VERIFYING   -
    LOADING    EngineReady         SERVING     -
    LOADING    EngineLost          UNLOADING   Unload(STOP)
    LOADING    Ticked              UNLOADING   Unload(STOP)      the load is late
    VERIFYING  EngineReady         SERVING     -
    VERIFYING  EngineLost          UNLOADING   Unload(STOP)
    VERIFYING  Ticked              UNLOADING   Unload(STOP)      the load is late
    SERVING    Prepared            DRAINING    -
    SERVING    EngineLost          LOST        -                 a switch prepares
    SERVING    EngineLost          UNLOADING   Unload(STOP)      no switch prepares
    SERVING    any                 SERVING     Prepare           a switch to a model begins
    SERVING    any                 DRAINING    -                 a switch to no model begins
    LOST       Prepared            UNLOADING   Unload(STOP)
    LOST       PreparationRefused  UNLOADING   Unload(STOP)      the same model is loaded next
    LOST       Ticked              UNLOADING   Unload(STOP)      the preparation is late: as above
    DRAINING   EngineLost          UNLOADING   Unload(STOP)
    DRAINING   any                 UNLOADING   Unload(SLEEP)     drained, or the cut's grace is over
    DRAINING   any                 UNLOADING   Unload(STOP_ALL)  the same, and no model comes next
    UNLOADING  EngineUnloaded      LOADING     Load              the target, or the old model again
    UNLOADING  EngineUnloaded      EMPTY       -                 nothing is left to load

`any` is each event, `Ticked` among them: such a row may follow the event's own row, and another
`any` row. A row of `Ticked` may follow any event that comes after its deadline. Any other pair of
state and event leaves the place as it is and has no effect; it may change the tickets, the gateways
or the lease. A stale event, about another epoch or about a ticket that does not prepare, changes
none of these.

A switch begins in this order: the queue (admins, leases), the models that requests wait for
(`switch_rule.py` says when), an idle model's unload, a retry (`triggers.py`).
"""

from collections.abc import Iterator
from typing import overload

from deployments.residency import events, triggers
from deployments.residency.changes import Change, LeaseChanged, LoadFailed, PhaseEntered
from deployments.residency.events import Event
from deployments.residency.leases import Lease
from deployments.residency.machine_state import MachineState
from deployments.residency.tickets import Ticket
from deployments.residency.types import (
    GOLDEN_MISMATCH,
    Cause,
    Effect,
    Load,
    Phase,
    Policy,
    Prepare,
    Problem,
    State,
    Unload,
    UnloadMode,
)


class Residency(MachineState):
    """Decides which model holds the GPU, and when that changes."""

    def __init__(self, models: list[str], policy: Policy, epoch: int = 0, boot: str = "0") -> None:
        super().__init__(models, policy, epoch, boot)
        self._effects: list[Effect] = []
        self._changes: list[Change] = []

    # --- for the Switchboard ---

    def take_effects(self) -> list[Effect]:
        """Hand out the decisions since the last call, in order, each to be carried out once."""
        effects, self._effects = self._effects, []
        return effects

    def take_changes(self) -> list[Change]:
        """Hand out what the machine did since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def next_deadline(self, now: float) -> float | None:
        """When the machine needs a `Ticked`, if no other event comes before."""
        return min((at for at in self._deadlines(now) if at > now), default=None)

    # --- events ---

    @overload
    def handle(self, event: events.SwitchRequested | events.LeaseRequested) -> Ticket: ...
    @overload
    def handle(self, event: Event) -> Ticket | None: ...
    def handle(self, event: Event) -> Ticket | None:
        """Take one event. A request for a switch or a lease returns its ticket.

        Raises:
            LeaseHeld: another owner has a lease; nothing has changed.
        """
        held, ticket = self.held, self._apply(event)
        self._advance(event.at)
        if self.held != held:
            self._changes.append(LeaseChanged(self.held))
        return ticket

    def _apply(self, event: Event) -> Ticket | None:
        """Change what the event itself changes; `_advance` does what follows from it."""
        match event:
            case events.SwitchRequested(now, target, cause, drain_timeout_s):
                return self._request_switch(now, target, cause, drain_timeout_s)
            case events.LeaseRequested(now, model, seconds, owner):
                return self._lease(now, Lease(model, owner, seconds))
            case events.LeaseRestored(now, lease):
                self.leases.restore(now, lease)
            case events.LeaseEnded():
                self.leases.end()
            case events.GatewayWatched(now, gateway):
                self.gateways.watch(now, gateway)
            case events.GatewayReported(now, report):
                self.gateways.report(now, report, self.epoch, self.holder)
            case events.Started(now, model):
                self.desired = model
                self._queue_new(now, model, Cause.START, 0)
            case events.EngineAdopted(now, model, epoch, endpoint):
                self.epoch, self.last_epoch = epoch, max(self.last_epoch, epoch)
                self.gateways.expect_unknown(now)
                self._serve(now, model, endpoint)
            case events.Prepared(now, ticket_id):
                if self._prepares(ticket_id):
                    self._go_on(now)
            case events.PreparationRefused(now, ticket_id, problem):
                if self._prepares(ticket_id):
                    self._refuse(now, problem)
            case events.EngineUnloaded(now, epoch):
                if epoch == self.epoch and self.state is State.UNLOADING:
                    self._leave_empty(now)
            case events.EngineVerifying(now, epoch):
                if epoch == self.epoch and self.state is State.LOADING:
                    self._verify(now)
            case events.EngineReady(now, epoch, endpoint):
                if epoch == self.epoch and self.state in (State.LOADING, State.VERIFYING):
                    self._become_ready(now, endpoint)
            case events.EngineLost(now, epoch, problem):
                if epoch == self.epoch:
                    self._lose_engine(now, problem)
            case events.Ticked():
                pass
        return None

    def _request_switch(
        self, now: float, target: str | None, cause: Cause, drain_timeout_s: float | None
    ) -> Ticket:
        assert target is None or target in self.models, target
        if cause is Cause.ADMIN and self.held and self.held.model != target:
            self.leases.end()
        drain_s = self.policy.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        ticket = self.tickets.join(target)
        if ticket:  # (2)
            return self._join(now, ticket, cause, drain_s)
        return self._make_ticket(now, target, cause, drain_s)

    def _lease(self, now: float, lease: Lease) -> Ticket:
        assert lease.model in self.models, lease.model
        self.leases.take(now, lease)
        ticket = self.tickets.join_last(lease.model)  # a ticket behind it would unload the model
        if ticket:
            return self._join(now, ticket, Cause.LEASE, self.policy.drain_timeout_s)
        return self._make_ticket(now, lease.model, Cause.LEASE, self.policy.drain_timeout_s)

    def _make_ticket(self, now: float, target: str | None, cause: Cause, drain_s: float) -> Ticket:
        if not self.tickets.is_idle or not self.is_resident(target):  # (3)
            return self._queue_new(now, target, cause, drain_s)
        ticket = self._new_ticket(now, target, cause, drain_s)  # (1)
        self._finish(now, ticket, Phase.READY)
        return ticket

    def _go_on(self, now: float) -> None:
        """The running switch is prepared: stop the old model, if the switch is still wanted."""
        ticket = self._the_running()
        if not self._is_wanted(ticket):
            self._abandon(now, ticket)
        elif self.state is State.EMPTY:
            self._load_target(now, ticket)
        elif self.state is State.LOST:
            self._unload(now)
        else:
            assert self.holder is not None
            self.state = State.DRAINING
            self.answer_deadline = None
            self.scheduler.close(now, self.holder)
            self.failed.reset_backoff()
            self._drain_deadline = now + ticket.drain_timeout_s
            self._enter(now, ticket, Phase.DRAINING)

    def _refuse(self, now: float, problem: Problem) -> None:
        """The running switch fails before it has disturbed the old model."""
        ticket = self._the_running()
        assert ticket.target is not None
        self._record_failure(now, ticket.target, problem)
        ticket.error = problem
        self._finish(now, ticket, Phase.FAILED)

    def _leave_empty(self, now: float) -> None:
        """The engine is gone: load the model that the running switch loads next, if any."""
        self.state, self.holder, self.endpoint = State.EMPTY, None, None
        ticket = self._the_running()
        if ticket.error and not ticket.is_rolling_back:
            self._finish(now, ticket, Phase.FAILED)
        elif ticket.is_rolling_back:
            assert ticket.source is not None
            self._load(now, ticket.source, ticket)
        elif ticket.target is None:
            self._learn_cost(now, ticket)
            self._finish(now, ticket, Phase.READY)
        else:
            self._load_target(now, ticket)

    def _verify(self, now: float) -> None:
        self.state = State.VERIFYING
        self._enter(now, self._the_running(), Phase.VERIFYING)

    def _become_ready(self, now: float, endpoint: str) -> None:
        ticket, model = self._the_running(), self.holder
        assert model is not None
        self._serve(now, model, endpoint)
        if ticket.is_rolling_back:
            self._on_probation = None
            self._finish(now, ticket, Phase.ROLLED_BACK)
        else:
            self._learn_cost(now, ticket)
            self.failed.forget(model)
            self._on_probation = (ticket, now)
            self._finish(now, ticket, Phase.READY)

    def _lose_engine(self, now: float, problem: Problem) -> None:
        """The engine failed (1) while it loaded, (2) while it drained, (3) while it served."""
        if self.state in (State.LOADING, State.VERIFYING):  # (1)
            self._fail_load(now, problem)
        elif self.state is State.DRAINING:  # (2)
            self._unload(now)
        elif self.state is State.SERVING:  # (3)
            self._lose_serving_engine(now, problem)

    # --- decisions ---

    def _advance(self, now: float) -> None:
        """Do what the present state calls for. Every event ends with this."""
        self.gateways.forget_silent(now)
        if self.state is State.DRAINING:
            self._advance_drain(now)
        if self.answer_deadline is not None and now >= self.answer_deadline:
            self._give_up_waiting(now)
        self.leases.expire(now)
        if self.tickets.is_idle:
            self._queue_due(now)
        if self.running is None and self.queue:
            self._begin(now, self.queue.pop(0))
        self._grant_lease(now)

    def _give_up_waiting(self, now: float) -> None:
        """The running switch's effect was not answered in time, for example because a disk hangs.
        An answer that comes later is stale."""
        self.answer_deadline = None
        ticket = self._the_running()
        seconds = f"{self.policy.load_timeout_s:.0f} s"
        if ticket.phase is Phase.PREPARING:
            message = f"the files of {ticket.target} could not be read within {seconds}"
            self._refuse(now, Problem("prepare_timeout", message))
        elif self.state in (State.LOADING, State.VERIFYING):
            message = f"{self.holder} was not ready within {seconds}"
            self._fail_load(now, Problem("load_timeout", message))

    def _advance_drain(self, now: float) -> None:
        if now >= self._drain_deadline:
            self.is_cut = True
        is_over = now >= self._drain_deadline + self.policy.cut_grace_s
        if is_over or self.gateways.is_drained(now, self.epoch):
            target = self._the_running().target
            self._unload(now, UnloadMode.SLEEP if target else UnloadMode.STOP_ALL)

    def _queue_due(self, now: float) -> None:
        due = triggers.due_switch(self, now)
        if due:
            if due.cause is Cause.RETRY:
                self.failed.next_retry = None
            self._queue_new(now, *due)

    def _grant_lease(self, now: float) -> None:
        """Start the lease's clock when its model serves and no pending ticket would replace it."""
        if self.held and self.tickets.is_idle and self.is_resident(self.held.model):
            self.leases.grant(now)

    def _begin(self, now: float, ticket: Ticket) -> None:
        if self.is_resident(ticket.target):
            self._finish(now, ticket, Phase.READY)
            self._advance(now)
            return
        if ticket.cause is Cause.LEASE and not self._is_wanted(ticket):
            self._abandon(now, ticket)
            self._advance(now)
            return
        self.tickets.running = ticket
        ticket.source = self.holder
        ticket.estimate_s = self.costs.estimate(ticket.source, ticket.target)
        self._enter(now, ticket, Phase.PREPARING)
        if ticket.target is None:
            self._go_on(now)
            self._advance(now)
        else:
            self._ask(now, Prepare(ticket.id, ticket.target))

    def _unload(self, now: float, mode: UnloadMode = UnloadMode.STOP) -> None:
        assert self.holder is not None
        self.state = State.UNLOADING
        self._enter(now, self._the_running(), Phase.UNLOADING)
        self.answer_deadline = None  # the Switchboard bounds an unload itself
        self._effects.append(Unload(self.epoch, self.holder, mode))

    def _ask(self, now: float, effect: Effect) -> None:
        self._effects.append(effect)
        self.answer_deadline = now + self.policy.load_timeout_s

    def _load_target(self, now: float, ticket: Ticket) -> None:
        assert ticket.target is not None
        ticket.num_attempts += 1
        self._load(now, ticket.target, ticket)

    def _load(self, now: float, model: str, ticket: Ticket) -> None:
        assert self.state is State.EMPTY, self  # at most one engine
        self.last_epoch += 1
        self.epoch = self.last_epoch
        self.state, self.holder = State.LOADING, model
        self.is_cut = False
        self._enter(now, ticket, Phase.LOADING)
        self._ask(now, Load(self.epoch, model))

    def _serve(self, now: float, model: str, endpoint: str) -> None:
        self.state, self.holder, self.endpoint = State.SERVING, model, endpoint
        self.answer_deadline = None
        self.serving_since = now
        self.scheduler.serve(now, model, self.gateways.waiting().get(model))
        self.desired = model
        self.failed.next_retry = None

    def _fail_load(self, now: float, problem: Problem) -> None:
        """(1) A wrong answer earns one restart, (2) the old model is loaded again, (3) the place
        stays empty."""
        ticket = self._the_running()
        assert self.holder is not None
        is_first = ticket.num_attempts == 1 and not ticket.is_rolling_back
        if problem.code == GOLDEN_MISMATCH and is_first:  # (1)
            self._unload(now)
            return
        self._record_failure(now, self.holder, problem)
        if not ticket.is_rolling_back and ticket.source not in (None, ticket.target):  # (2)
            ticket.error = problem
            ticket.is_rolling_back = True
            self.desired = ticket.source
        else:  # (3)
            ticket.error = ticket.error or problem
            ticket.is_rolling_back = False
        self._unload(now)

    def _lose_serving_engine(self, now: float, problem: Problem) -> None:
        """(1) Another switch prepares: it goes on. (2) The engine is on probation: its load failed
        after all. (3) The same model is loaded again."""
        assert self.holder is not None
        self.state = State.LOST
        self.scheduler.close(now, self.holder)
        loaded = self._on_probation
        if self.running:  # (1)
            return
        if loaded and now < loaded[1] + self.policy.probation_s:  # (2)
            self.tickets.running, self._on_probation = loaded[0], None
            self._fail_load(now, problem)
        else:  # (3)
            self.failed.reset_backoff()
            self._recover(now)

    def _recover(self, now: float) -> None:
        ticket = self._new_ticket(now, self.holder, Cause.RECOVERY, 0)
        self.tickets.running = ticket
        self._unload(now)

    def _is_wanted(self, ticket: Ticket) -> bool:
        """Whether the lease or the requests that the switch is made for are still there; asked just
        before it stops the resident model."""
        if ticket.cause not in (Cause.LEASE, Cause.REQUEST):
            return True
        if self.held:
            return self.held.model == ticket.target
        return ticket.target in self.gateways.waiting()

    def _abandon(self, now: float, ticket: Ticket) -> None:
        ticket.error = Problem("abandoned", "no request is waiting for this model any more")
        self._finish(now, ticket, Phase.FAILED)

    def _finish(self, now: float, ticket: Ticket, phase: Phase) -> None:
        assert phase.is_last
        self._enter(now, ticket, phase)
        if ticket is self.running:
            self.answer_deadline = None
        self.tickets.finish(ticket)
        if ticket.target is None and phase is Phase.READY:
            self.desired = None
        if self.state is State.LOST:  # the engine died while the switch prepared
            self._recover(now)
        elif self.state is State.EMPTY and phase is Phase.FAILED:
            self.failed.backoff(now)

    # --- bookkeeping ---

    def _the_running(self) -> Ticket:
        assert self.running is not None
        return self.running

    def _prepares(self, ticket_id: str) -> bool:
        """Whether this ticket is the one being prepared."""
        ticket = self.running
        return ticket is not None and (ticket.id, ticket.phase) == (ticket_id, Phase.PREPARING)

    def _new_ticket(self, now: float, target: str | None, cause: Cause, drain_s: float) -> Ticket:
        ticket = self.tickets.new(now, self.holder, target, cause, drain_s)
        self._changes.append(PhaseEntered(ticket, 0))
        return ticket

    def _queue_new(self, now: float, target: str | None, cause: Cause, drain_s: float) -> Ticket:
        ticket = self._new_ticket(now, target, cause, drain_s)
        self.queue.append(ticket)
        return ticket

    def _enter(self, now: float, ticket: Ticket, phase: Phase) -> None:
        ticket.history.append((phase, now))
        self._changes.append(PhaseEntered(ticket, len(ticket.history) - 1))

    def _join(self, now: float, ticket: Ticket, cause: Cause, drain_timeout_s: float) -> Ticket:
        """Take a second request for the same switch: it may shorten the drain, not lengthen it."""
        is_promoted = cause is Cause.LEASE and ticket.cause is Cause.REQUEST
        if cause is Cause.ADMIN or is_promoted:
            ticket.cause = cause  # the switch goes on even if the waiting requests leave
        if drain_timeout_s < ticket.drain_timeout_s:
            ticket.drain_timeout_s = drain_timeout_s
            if self.state is State.DRAINING and ticket is self.running:
                self._drain_deadline = min(self._drain_deadline, now + drain_timeout_s)
        return ticket

    def _record_failure(self, now: float, model: str, problem: Problem) -> None:
        self.failed.record(now, model, problem)
        self._changes.append(LoadFailed(model, problem))
        if self.held and self.held.model == model:
            self.leases.end()

    def _learn_cost(self, now: float, ticket: Ticket) -> None:
        """Add the seconds from the old model's last possible answer to the new one's first."""
        began = next(
            at for phase, at in ticket.history if phase in (Phase.UNLOADING, Phase.LOADING)
        )
        self.costs.learn(ticket.source, ticket.target, now - began)

    def _deadlines(self, now: float) -> Iterator[float]:
        yield from self.gateways.deadlines()
        if self.answer_deadline is not None:
            yield self.answer_deadline
        if self.state is State.DRAINING:
            yield self._drain_deadline + (self.policy.cut_grace_s if self.is_cut else 0)
            yield self.gateways.all_known_at
        if self.held and self.held.until is not None:
            yield self.held.until
        if self.running is None:
            yield from triggers.deadlines(self, now)
