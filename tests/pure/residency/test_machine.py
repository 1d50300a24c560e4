"""Any history of switches, requests, faults and restarts keeps the residency machine's promises.

Hypothesis makes the histories and shrinks a failing one to its shortest form. Time is virtual: the
machine is woken at its own deadlines and at no other moment, as the Switchboard does it. Gateways
are modelled with what makes them hard: each acts on the view it has last seen, answers and reports
travel as late as they like, and may overtake each other.
"""

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from deployments.residency import (
    GOLDEN_MISMATCH,
    Cause,
    Effect,
    Event,
    GatewayReport,
    LeaseHeld,
    Load,
    Phase,
    Prepare,
    Problem,
    Residency,
    State,
    Ticket,
    TicketState,
    Unload,
    Waiting,
    events,
)
from deployments.residency.invariants import validate
from deployments.residency.records import from_json, replay, to_json
from tests.pure.residency.driver import BROKEN, MODELS, REFUSAL
from tests.pure.residency.driver import POLICY as SHIPPED
from tests.pure.residency.transitions import explain

WRONG_ANSWER = Problem(GOLDEN_MISMATCH, "the answer is wrong")
POLICY = replace(SHIPPED, idle_unload_s={"b": 15.0, "c": 60.0})
WATCH_S = 5.0  # a gateway that lives is heard of this often
STARTING = (State.LOADING, State.VERIFYING)
MAX_IN_SERVICE = 2
MAX_GATEWAYS = 3

targets = st.sampled_from([*MODELS, None])
models = st.sampled_from(MODELS)
picks = st.integers(0, 5)  # an index into whatever there is, wrapped around
drains = st.sampled_from([None, 0.0, 3.0, 20.0])


@dataclass(frozen=True)
class Seen:
    """The machine's state as a gateway learns it."""

    epoch: int
    state: State
    holder: str | None
    is_cut: bool


@dataclass
class Engine:
    """Exists from its Load to its Unload's answer, dead or alive."""

    epoch: int
    model: str
    is_alive: bool = True
    is_verified: bool = False
    is_ending: bool = False  # its Unload was decided
    is_excused: bool = False  # requests may be cut: it died, or the deadline is over


@dataclass
class Gateway:
    """One gateway: its view, its requests, and its mail to and from the Switchboard."""

    name: str
    heard_at: float
    view: Seen | None = None
    is_watching: bool = False  # a watch is under way
    answer: Seen | None = None  # the answer to it, on its way
    is_hung: bool = False  # it sends no signs of life
    is_trusted: bool = False  # the Switchboard has heard of it, and without a long pause since
    num_reports: int = 0
    last_active: float | None = None
    in_flight: dict[int, int] = field(default_factory=dict)
    waiting: list[tuple[str, float]] = field(default_factory=list)  # (model, arrival)
    reports: list[GatewayReport] = field(default_factory=list)  # on their way

    def make_report(self, now: float) -> None:
        waiting: dict[str, Waiting] = {}
        for model, arrival in self.waiting:
            have = waiting.get(model, Waiting(0, now - arrival))
            waiting[model] = Waiting(have.num_requests + 1, have.oldest_age_s)
        view = self.view
        is_open = view is None or view.state in (*STARTING, State.SERVING)
        closed = (view.epoch if view else 0) - is_open
        self.num_reports += 1
        idle_s = None if self.last_active is None else now - self.last_active
        self.reports.append(
            GatewayReport(
                self.name, self.num_reports, closed, dict(self.in_flight), waiting, idle_s
            )
        )


class ResidencyMachine(RuleBasedStateMachine):
    """A Switchboard, its gateways and its one GPU place, run by arbitrary histories."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.machine = Residency(MODELS, POLICY)
        self.lines = [to_json(self.machine)]  # since the Switchboard's start
        self.decided: list[Effect] = []  # not looked at yet
        self.effects: list[Effect] = []  # decided since then
        self.engine: Engine | None = None
        self.prepare: Prepare | None = None  # unanswered
        self.gateways: list[Gateway] = []
        self.num_gateways = 0
        self.last_epoch = 0
        self.excused_epochs: set[int] = set()  # requests under them may have failed
        self.tickets: dict[str, Ticket] = {}
        self.states: dict[str, TicketState] = {}
        self.drain_deadline = math.inf

    @initialize(model=targets, is_up=st.integers(0, 3), num_gateways=st.integers(0, 2))
    def start(self, model, is_up, num_gateways):
        """Mostly a server that serves already, and gateways that know it."""
        if model:
            self.handle(events.Started(self.now, model))
        self.settle()
        if is_up and self.is_asked():
            self.all_asked_for_steps_succeed()
        for _ in range(num_gateways):
            self.gateway_appears()
        if is_up:
            self.all_mail_arrives()

    # --- requests for switches and leases ---

    @rule(model=targets, drain_s=drains)
    def admin_switches(self, model, drain_s):
        running = self.machine.running
        ticket = self.handle(events.SwitchRequested(self.now, model, Cause.ADMIN, drain_s))
        assert ticket.target == model
        is_draining = self.machine.state is State.DRAINING
        if ticket is running and drain_s is not None and is_draining:
            self.drain_deadline = min(self.drain_deadline, self.now + drain_s)
        self.settle(ticket)

    @rule(
        model=models,
        seconds=st.sampled_from([3.0, 40.0]),
        owner=st.sampled_from(["one", "other"]),
    )
    def owner_leases(self, model, seconds, owner):
        held = self.machine.held
        if held and held.owner != owner:
            with pytest.raises(LeaseHeld) as caught:
                self.handle(events.LeaseRequested(self.now, model, seconds, owner))
            assert caught.value.lease is held is self.machine.held
            return
        ticket = self.handle(events.LeaseRequested(self.now, model, seconds, owner))
        assert ticket.target == model
        assert self.machine.held
        assert (self.machine.held.model, self.machine.held.owner) == (model, owner)
        self.settle(ticket)

    @rule(luck=st.integers(0, 1))
    def lease_is_given_back(self, luck):
        if luck:
            return
        self.handle(events.LeaseEnded(self.now))
        assert self.machine.held is None
        self.settle()

    @precondition(lambda self: self.gateways)
    @rule(pick=picks, model=models, is_for_holder=st.booleans())
    def request_comes(self, pick, model, is_for_holder):
        gateway = self.gateway(pick)
        if is_for_holder and self.machine.holder:
            model = self.machine.holder
        gateway.waiting.append((model, self.now))
        self.admit(gateway)
        if gateway.waiting:
            gateway.make_report(self.now)

    @precondition(lambda self: any(g.in_flight for g in self.gateways))
    @rule(pick=picks)
    def request_ends(self, pick):
        busy = [g for g in self.gateways if g.in_flight]
        self.end_request(busy[pick % len(busy)])

    @precondition(lambda self: any(g.waiting for g in self.gateways))
    @rule(pick=picks)
    def waiting_client_leaves(self, pick):
        having = [g for g in self.gateways if g.waiting]
        gateway = having[pick % len(having)]
        gateway.waiting.pop(pick % len(gateway.waiting))
        gateway.make_report(self.now)

    # --- gateways and their mail ---

    @precondition(lambda self: len(self.gateways) < MAX_GATEWAYS)
    @rule()
    def gateway_appears(self):
        self.num_gateways += 1
        gateway = Gateway(f"gateway-{self.num_gateways}", self.now)
        self.gateways.append(gateway)
        self.call_watch(gateway)
        self.settle()

    @precondition(lambda self: self.gateways)
    @rule(pick=picks, is_for_good=st.booleans(), luck=st.integers(0, 2))
    def gateway_hangs_or_goes_on(self, pick, is_for_good, luck):
        if luck:
            return
        gateway = self.gateway(pick)
        gateway.is_hung = not gateway.is_hung
        if is_for_good:
            self.gateways.remove(gateway)

    @precondition(lambda self: any(g.is_watching and not g.answer for g in self.gateways))
    @rule(pick=picks)
    def watch_is_answered(self, pick):
        watching = [g for g in self.gateways if g.is_watching and not g.answer]
        watching[pick % len(watching)].answer = self.seen()

    @precondition(lambda self: any(g.is_watching for g in self.gateways))
    @rule(pick=picks)
    def gateway_learns(self, pick):
        watching = [g for g in self.gateways if g.is_watching]
        self.learn(watching[pick % len(watching)])
        self.settle()

    @precondition(lambda self: any(self.deliverable(g) for g in self.gateways))
    @rule(pick=picks, which=picks)
    def report_arrives(self, pick, which):
        sending = [g for g in self.gateways if self.deliverable(g)]
        gateway = sending[pick % len(sending)]
        self.deliver(gateway, which % len(gateway.reports))
        self.settle()

    @precondition(lambda self: self.gateways)
    @rule()
    def all_mail_arrives(self):
        for gateway in self.gateways:
            if gateway.is_watching:
                self.learn(gateway)
            while self.deliverable(gateway):
                self.deliver(gateway, 0)
            self.settle()

    # --- answers of the engine's side ---

    @precondition(lambda self: self.is_asked())
    @rule()
    def asked_for_step_succeeds(self):
        if self.prepare:
            ticket_id, self.prepare = self.prepare.ticket_id, None
            self.handle(events.Prepared(self.now, ticket_id))
            self.settle()
        elif self.is_loading():
            self.engine_answers_rightly()
        else:
            self.unload_ends()

    @precondition(lambda self: self.is_asked())
    @rule()
    def all_asked_for_steps_succeed(self):
        while self.is_asked():
            self.asked_for_step_succeeds()

    @precondition(lambda self: self.prepare)
    @rule()
    def preparation_is_refused(self):
        assert self.prepare
        ticket_id, self.prepare = self.prepare.ticket_id, None
        self.handle(events.PreparationRefused(self.now, ticket_id, REFUSAL))
        self.settle()

    @precondition(lambda self: self.is_loading())
    @rule()
    def engine_listens(self):
        assert self.engine
        self.handle(events.EngineVerifying(self.now, self.engine.epoch))
        self.settle()

    @precondition(lambda self: self.is_loading())
    @rule(problem=st.sampled_from([BROKEN, WRONG_ANSWER]))
    def load_fails(self, problem):
        self.engine_fails(problem)

    @precondition(lambda self: self.engine and self.engine.is_alive)
    @rule(luck=st.integers(0, 2))
    def engine_dies(self, luck):
        if luck:
            return
        self.engine_fails(BROKEN)

    @rule(age=st.integers(1, 3))
    def stale_news_arrives(self, age):
        epoch = self.last_epoch - age
        self.handle(events.EngineVerifying(self.now, epoch))
        self.handle(events.EngineReady(self.now, epoch, "/run/stale.sock"))
        self.handle(events.EngineLost(self.now, epoch, BROKEN))
        self.handle(events.EngineUnloaded(self.now, epoch))
        self.handle(events.Prepared(self.now, "sw-0-0"))
        self.handle(events.PreparationRefused(self.now, "sw-0-0", REFUSAL))
        assert not self.take_decided()

    # --- time, and the Switchboard itself ---

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 20.0, 70.0]))
    def time_passes(self, seconds):
        end = self.now + seconds
        while self.now < end:
            self.sleep(min(WATCH_S, end - self.now))
            for gateway in self.gateways:
                if not gateway.is_hung:
                    self.call_watch(gateway)
            self.settle()

    @rule(luck=st.integers(0, 2))
    def switchboard_restarts(self, luck):
        if luck:  # a rarer rule
            return
        desired, epoch = self.machine.desired, self.machine.last_epoch
        self.machine = Residency(MODELS, POLICY, epoch)
        self.lines, self.effects, self.decided = [to_json(self.machine)], [], []
        self.prepare, self.drain_deadline = None, math.inf
        self.tickets.clear()
        self.states.clear()
        for gateway in self.gateways:  # calls under way fail
            gateway.reports.clear()
            gateway.is_watching, gateway.answer = False, None
            gateway.heard_at = self.now
        engine = self.engine
        if engine and engine.is_alive and engine.is_verified:
            # also an engine that was draining or ending: its requests go on
            engine.is_ending = engine.is_excused = False
            self.handle(
                events.EngineAdopted(self.now, engine.model, engine.epoch, "/run/engine.sock")
            )
        else:
            if engine:
                self.excused_epochs.add(engine.epoch)
            self.engine = None
            for gateway in self.gateways:
                gateway.in_flight.clear()
            if desired:
                self.handle(events.Started(self.now, desired))
        for gateway in self.gateways:
            if not gateway.is_hung:
                self.call_watch(gateway)
        self.settle()

    # --- promises ---

    @invariant()
    def nothing_is_decided_without_an_event_or_a_deadline(self):
        """A tick without a deadline changes nothing: no deadline was missed."""
        deadline = self.machine.next_deadline(self.now)
        assert deadline is None or deadline > self.now
        before = self.summary()
        self.handle(events.Ticked(self.now))
        assert not self.take_decided()
        assert self.summary() == before

    @invariant()
    def state_fits_the_world(self):
        machine, engine = self.machine, self.engine
        assert (machine.state is State.EMPTY) == (engine is None)
        assert (machine.holder is None) == (machine.state is State.EMPTY)
        if engine:
            assert (machine.epoch, machine.holder) == (engine.epoch, engine.model)
            assert (machine.state is State.UNLOADING) == engine.is_ending
        if machine.state is State.SERVING:
            assert engine
            assert engine.is_alive
            assert engine.is_verified
            assert machine.desired == engine.model
        assert machine.running or machine.state in (State.EMPTY, State.SERVING)
        assert machine.running or not machine.queue
        waits_for_preparation = (
            machine.running is not None and machine.running.phase is Phase.PREPARING
        )
        assert (self.prepare is not None) == waits_for_preparation

    @invariant()
    def every_ticket_is_over_or_has_its_turn(self):
        live = [*([self.machine.running] if self.machine.running else []), *self.machine.queue]
        for ticket in self.tickets.values():
            assert ticket.is_over != any(ticket is t for t in live), ticket
            times = [at for _, at in ticket.history]
            assert times == sorted(times)
            assert ticket.history[-1][0] is ticket.phase
        targets = [t.target for t in self.machine.queue]
        assert len(set(targets)) == len(targets)

    @invariant()
    def empty_place_that_should_not_be_is_tried_again(self):
        machine = self.machine
        if machine.state is State.EMPTY and machine.desired and not machine.running:
            assert machine.next_deadline(self.now) is not None

    @invariant()
    def lease_stands_or_is_coming(self):
        """Granted, its model serves or is being brought back, and no switch leads elsewhere."""
        machine, held = self.machine, self.machine.held
        if held is None:
            return
        line = [*([machine.running] if machine.running else []), *machine.queue]
        if held.until is None:
            assert any(t.target == held.model and not t.error for t in line)
        else:
            assert self.now < held.until <= self.now + held.seconds
            assert all(t.target == held.model for t in line)
            assert machine.holder == held.model or machine.running

    def teardown(self):
        """What was written down is replayed to the same decisions and the same state. And from any
        state, once faults end, the desired model serves, and no request waits any more."""
        steps = list(replay(self.lines))
        assert [effect for step in steps for effect in step.effects] == self.effects
        assert not steps or steps[-1].machine == self.machine
        assert from_json(to_json(self.machine)) == self.machine
        for gateway in self.gateways:
            gateway.is_hung = False
        for _ in range(400):
            self.calm_down()
        assert not any(g.waiting for g in self.gateways)
        assert self.machine.running is None
        if self.machine.desired is None:
            assert self.machine.state is State.EMPTY
        else:
            assert self.machine.state is State.SERVING
            assert self.machine.holder == self.machine.desired

    # --- the world's workings ---

    def handle(self, event: Event) -> Ticket | None:
        """Every event goes this way: the machine is valid after it, and its table explains it."""
        self.lines.append(to_json(event))
        state, last_epoch = self.machine.state, self.machine.last_epoch
        ticket = self.machine.handle(event)
        validate(self.machine, last_epoch)
        effects = self.machine.take_effects()
        explain(state, event, self.machine.state, effects)
        self.decided += effects
        return ticket

    def take_decided(self) -> list[Effect]:
        decided, self.decided = self.decided, []
        return decided

    def calm_down(self) -> None:
        """Two seconds in which everything succeeds and all mail arrives."""
        if self.is_asked():
            self.all_asked_for_steps_succeed()
        for gateway in self.gateways:
            self.call_watch(gateway)
            gateway.answer = None
            self.learn(gateway)
            while self.deliverable(gateway):
                self.deliver(gateway, 0)
            while gateway.in_flight:
                self.end_request(gateway)
            gateway.make_report(self.now)
            self.deliver(gateway, 0)
            self.settle()
        self.sleep(2)
        self.nothing_is_decided_without_an_event_or_a_deadline()
        self.state_fits_the_world()

    def settle(self, ticket: Ticket | None = None) -> None:
        """After each event: take the decisions, and look at every ticket."""
        running = self.machine.running
        asked_id = running.id if running and running.phase is Phase.PREPARING else None
        if self.prepare and self.prepare.ticket_id != asked_id:
            self.prepare = None  # given up: an answer would be stale
        for effect in self.take_decided():
            self.effects.append(effect)
            match effect:
                case Prepare():
                    assert self.prepare is None
                    self.check_priority()
                    self.prepare = effect
                case Unload(epoch, model):
                    self.check_idleness()
                    self.begin_unload(epoch, model)
                case Load(epoch, model):
                    assert self.engine is None, "a second engine"
                    assert epoch > self.last_epoch
                    self.engine, self.last_epoch = Engine(epoch, model), epoch
                    self.drain_deadline = math.inf
        running = self.machine.running
        if self.machine.state is State.DRAINING and running and self.drain_deadline == math.inf:
            self.drain_deadline = self.now + running.drain_timeout_s
        for known in [ticket, running, *self.machine.queue]:
            if known:
                self.tickets[known.id] = known
        for known in self.tickets.values():
            self.check_outcome(known)

    def check_priority(self) -> None:
        """No request begins a switch away from a lease, nor while another switch is queued."""
        machine = self.machine
        assert machine.running
        if machine.running.cause is Cause.REQUEST:
            assert machine.held is None or machine.held.model == machine.running.target
            assert not machine.queue

    def check_idleness(self) -> None:
        """Only a model with an idle time is unloaded for it, and not before it is over."""
        ticket = self.machine.running
        if ticket and ticket.cause is Cause.IDLE:
            assert ticket.source in POLICY.idle_unload_s
            idle_s = POLICY.idle_unload_s[ticket.source]
            assert ticket.created_at >= self.machine.serving_since + idle_s

    def begin_unload(self, epoch: int, model: str) -> None:
        engine = self.engine
        assert engine
        assert (engine.epoch, engine.model) == (epoch, model)
        assert not engine.is_ending
        engine.is_ending = True
        engine.is_excused |= not engine.is_alive
        engine.is_excused |= self.now >= self.drain_deadline + POLICY.cut_grace_s
        if not engine.is_excused:
            for gateway in self.gateways:
                assert not (gateway.is_trusted and gateway.in_flight.get(epoch)), gateway

    def check_outcome(self, ticket: Ticket) -> None:
        """A ticket that is over stays as it is, but for a death within its probation."""
        before, after = self.states.get(ticket.id), ticket.state
        self.states[ticket.id] = after
        if before is after or before in (None, TicketState.QUEUED):
            return
        if before is TicketState.RUNNING:
            assert after in (TicketState.DONE, TicketState.ROLLED_BACK, TicketState.FAILED)
            return
        assert before is TicketState.DONE, ticket
        assert after in (TicketState.RUNNING, TicketState.ROLLED_BACK, TicketState.FAILED), ticket
        ready_at = next(at for phase, at in reversed(ticket.history) if phase is Phase.READY)
        assert self.now < ready_at + POLICY.probation_s

    def engine_answers_rightly(self) -> None:
        assert self.engine
        self.engine.is_verified = True
        self.handle(events.EngineReady(self.now, self.engine.epoch, "/run/engine.sock"))
        self.settle()

    def unload_ends(self) -> None:
        assert self.engine
        if self.engine.is_excused:
            self.excused_epochs.add(self.engine.epoch)
        epoch, self.engine = self.engine.epoch, None
        for gateway in self.gateways:
            if gateway.in_flight.pop(epoch, None):
                gateway.make_report(self.now)
        self.handle(events.EngineUnloaded(self.now, epoch))
        self.settle()

    def engine_fails(self, problem: Problem) -> None:
        assert self.engine
        self.engine.is_alive, self.engine.is_excused = False, True
        self.handle(events.EngineLost(self.now, self.engine.epoch, problem))
        self.settle()

    def is_asked(self) -> bool:
        """Whether the machine waits for an answer."""
        is_ending = self.engine is not None and self.engine.is_ending
        return self.prepare is not None or is_ending or self.is_loading()

    def is_loading(self) -> bool:
        engine = self.engine
        return bool(engine and engine.is_alive and not engine.is_verified and not engine.is_ending)

    def sleep(self, seconds: float) -> None:
        """Let time pass, waking the machine at its deadlines only."""
        end, num_wakes = self.now + seconds, 0
        while (at := self.machine.next_deadline(self.now)) is not None and at <= end:
            num_wakes += 1
            assert num_wakes < 100, "it is woken without end"
            self.now = at
            self.forget_silent()
            self.handle(events.Ticked(self.now))
            self.settle()
        self.now = end
        self.forget_silent()

    def forget_silent(self) -> None:
        for gateway in self.gateways:
            if self.now >= gateway.heard_at + POLICY.gateway_ttl_s:
                gateway.is_trusted = False
                gateway.reports.clear()  # no call takes that long

    def gateway(self, pick: int) -> Gateway:
        return self.gateways[pick % len(self.gateways)]

    def seen(self) -> Seen:
        machine = self.machine
        return Seen(machine.epoch, machine.state, machine.holder, machine.is_cut)

    def hear(self, gateway: Gateway) -> None:
        gateway.heard_at = self.now
        gateway.is_trusted = True

    def call_watch(self, gateway: Gateway) -> None:
        """A new watch, or the same one again: the Switchboard answers every few seconds."""
        self.hear(gateway)
        gateway.is_watching = True
        self.handle(events.GatewayWatched(self.now, gateway.name))

    def learn(self, gateway: Gateway) -> None:
        """The answer arrives: cut, admit, report, and watch again."""
        gateway.view, gateway.answer = gateway.answer or self.seen(), None
        if gateway.view.is_cut:
            gateway.in_flight.pop(gateway.view.epoch, None)
        self.admit(gateway)
        gateway.make_report(self.now)
        self.call_watch(gateway)

    def admit(self, gateway: Gateway) -> None:
        """Send waiting requests to the engine that the gateway believes to serve."""
        view = gateway.view
        if view is None or view.state is not State.SERVING:
            return
        for entry in list(gateway.waiting):
            if entry[0] == view.holder and sum(gateway.in_flight.values()) < MAX_IN_SERVICE:
                gateway.waiting.remove(entry)
                self.send(gateway, view)

    def send(self, gateway: Gateway, view: Seen) -> None:
        """One request goes to the engine of `view`: it has to be there, and to stay."""
        engine = self.engine
        if engine is None or engine.epoch != view.epoch:  # gone: an error for the client
            assert view.epoch in self.excused_epochs or not gateway.is_trusted
            return
        assert engine.model == view.holder
        assert not engine.is_ending or engine.is_excused or not gateway.is_trusted
        gateway.in_flight[view.epoch] = gateway.in_flight.get(view.epoch, 0) + 1
        gateway.last_active = self.now

    def end_request(self, gateway: Gateway) -> None:
        gateway.last_active = self.now
        epoch = min(gateway.in_flight)
        gateway.in_flight[epoch] -= 1
        if not gateway.in_flight[epoch]:
            del gateway.in_flight[epoch]
        self.admit(gateway)
        if gateway.waiting or gateway.view is None or gateway.view.state is not State.SERVING:
            gateway.make_report(self.now)

    def deliverable(self, gateway: Gateway) -> bool:
        return bool(gateway.reports)

    def deliver(self, gateway: Gateway, index: int) -> None:
        self.hear(gateway)
        self.handle(events.GatewayReported(self.now, gateway.reports.pop(index)))

    def summary(self) -> tuple[object, ...]:
        machine = self.machine
        running = machine.running
        return (
            machine.state,
            machine.holder,
            machine.epoch,
            machine.desired,
            machine.is_cut,
            running and (running.id, running.phase),
            [t.id for t in machine.queue],
        )


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(
    max_examples=400,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,  # the same histories everywhere; take it away to search for new ones
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
