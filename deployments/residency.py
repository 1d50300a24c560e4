"""Who may hold the GPU, and when that changes: a pure state machine.

Events come in as method calls with the time they happened at; decisions go out as `Effect` values
that the Switchboard carries out, answering each with a later event. Nothing here knows Ray, vLLM, a
clock or I/O, and no method awaits, so every event is atomic.

What is called a model here is a target: a model with the task its engine is started for, a name to
be compared and no more. One place, one holder. A switch of it from `old` to `new` goes through

    PREPARING  what needs no GPU; the old model still serves
    DRAINING   nobody is admitted any more; requests in flight end, or are cut at the deadline
    UNLOADING  the old engine ends, and is proven gone
    LOADING    the new engine starts
    VERIFYING  it answers a known question
    READY      it serves

and whatever fails from LOADING on brings `old` back (ROLLED_BACK); only if that fails too is the
place left empty (FAILED), to be tried again later.

Who comes first: an admin's wish, then a lease, then what requests wait for (`scheduling.py` says
when), then nobody at all: an idle model may be unloaded.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from deployments.scheduling import Arrivals, Claim, Costs, Resident, Rule


class State(StrEnum):
    """What the place is doing."""

    EMPTY = "empty"  # no engine
    LOADING = "loading"  # an engine is starting
    VERIFYING = "verifying"  # an engine is up and answers its known question
    SERVING = "serving"  # requests for the holder are admitted
    DRAINING = "draining"  # the holder still works, and admits nobody
    LOST = "lost"  # the holder's engine died; what is left of it is not yet cleared
    UNLOADING = "unloading"  # an engine is ending


class Phase(StrEnum):
    """How far a ticket has come."""

    QUEUED = "queued"
    PREPARING = "preparing"
    DRAINING = "draining"
    UNLOADING = "unloading"
    LOADING = "loading"
    VERIFYING = "verifying"
    READY = "ready"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class Outcome(StrEnum):
    """A ticket's state as clients see it."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class Cause(StrEnum):
    """Why a switch is made."""

    START = "start"  # the default model, after a start
    ADMIN = "admin"
    LEASE = "lease"  # somebody wants the model kept
    REQUEST = "request"  # somebody waits for the model
    IDLE = "idle"  # nobody has used the model for long
    RECOVERY = "recovery"  # the engine died
    RETRY = "retry"  # a failed load is tried again


@dataclass(frozen=True)
class Problem:
    """Why something failed; `message` is one sentence that is safe to show."""

    code: str
    message: str


GOLDEN_MISMATCH = "golden_mismatch"  # the code of a problem that earns one restart


@dataclass(frozen=True)
class Policy:
    """Durations in seconds; see `configs/backend.yaml`."""

    drain_timeout_s: float
    max_wait_s: float
    min_resident_s: float
    probation_s: float
    failed_retry_s: float
    load_timeout_s: float = 600.0  # to prepare a model; to load and verify it
    cut_grace_s: float = 5.0  # a gateway has this long to report its cut requests as ended
    # A gateway silent this long is gone, and its requests with it: a switch waits so long for one
    # that was killed. It speaks every five seconds; with ten busy loops a core it took three more.
    gateway_ttl_s: float = 20.0
    retry_limit_s: float = 300.0  # the doubling pause between retries stops growing here
    idle_unload_s: Mapping[str, float] = field(default_factory=dict)  # model -> unused this long


@dataclass(frozen=True)
class Waiting:
    """The requests of one gateway that wait for one model."""

    num_requests: int
    oldest_arrival: float  # in the machine's time, seconds


@dataclass(frozen=True)
class GatewayReport:
    """What a gateway says of itself; a later `seq` replaces an earlier one."""

    seq: int
    closed_epoch: int  # under this epoch and older ones it admits nobody, now or later
    in_flight: dict[int, int] = field(default_factory=dict)  # epoch -> requests
    waiting: dict[str, Waiting] = field(default_factory=dict)  # model -> who waits for it
    last_active: float = 0.0  # when it last admitted a request or saw one end; 0: never


@dataclass
class Ticket:
    """One switch, from the wish to its end."""

    id: str
    source: str | None
    target: str | None  # None: unload
    cause: Cause
    drain_timeout_s: float
    created_at: float
    phase: Phase = Phase.QUEUED
    outcome: Outcome = Outcome.QUEUED
    error: Problem | None = None
    num_attempts: int = 0  # loads of the target
    is_rolling_back: bool = False
    history: list[tuple[Phase, float]] = field(default_factory=list)  # (phase, entered at)
    estimate_s: float | None = None  # what it should take without its drain, as it begins

    def enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.history.append((phase, now))

    @property
    def is_over(self) -> bool:
        return self.outcome in (Outcome.DONE, Outcome.ROLLED_BACK, Outcome.FAILED)


@dataclass(frozen=True)
class Failure:
    """The last failed load of a model; `seq` grows with each failure of any model."""

    seq: int
    problem: Problem
    retry_at: float
    ticket_id: str


@dataclass(frozen=True)
class Lease:
    """The right of `owner` to have `model` stay resident for `seconds`, once it serves."""

    model: str
    owner: str
    seconds: float
    until: float | None = None  # None until it serves


class LeaseHeld(Exception):
    """Somebody else holds a lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.lease = lease


@dataclass(frozen=True)
class Prepare:
    """Check what can be checked without the GPU. Answer: `prepared` or `refused`."""

    ticket_id: str
    model: str


class Parting(StrEnum):
    """How an engine leaves the place."""

    REST = "rest"  # it worked to the end: it may be kept asleep, where the host keeps engines so
    END = "end"  # it ends
    CLEAR = "clear"  # it ends, and whatever sleeps ends too


@dataclass(frozen=True)
class Unload:
    """Put this engine out of the place and prove it, within a bound. Answer: `unloaded`."""

    epoch: int
    model: str
    parting: Parting


@dataclass(frozen=True)
class Load:
    """Start an engine. Answers: `verifying`, `ready`; `engine_lost` at any time after."""

    epoch: int
    model: str


Effect = Prepare | Unload | Load


@dataclass
class _Gateway:
    last_seen: float
    report: GatewayReport
    reported_at: float = -math.inf


class Residency:
    """The machine. All times are seconds of one monotonic clock."""

    def __init__(self, models: list[str], policy: Policy, epoch: int = 0, boot: str = "0") -> None:
        self.models = models
        self._boot = boot  # makes tickets' ids unique over restarts
        self.policy = policy
        self.epoch = epoch  # grows with every load; names the engine
        self._last_epoch = epoch  # not less, where an engine was adopted that an older load began
        self.state = State.EMPTY
        self.holder: str | None = None  # the model whose engine is in the place
        self.endpoint: str | None = None  # the engine's socket while SERVING or DRAINING
        self.serving_since = 0.0
        self.desired: str | None = None  # what a restart of everything brings back
        self.running: Ticket | None = None
        self.queue: list[Ticket] = []
        self.failures: dict[str, Failure] = {}
        self.is_cut = False  # the drain deadline has passed: gateways end what is in flight
        self.held: Lease | None = None
        self.costs = Costs()
        self._arrivals = Arrivals()
        self._rule = Rule(len(models), policy.max_wait_s, policy.min_resident_s)
        self._left_at: dict[str, float] = {}  # model -> when it last ceased to admit
        self._last_active = -math.inf  # a request was admitted or ended, or waited for the holder
        self._gateways: dict[str, _Gateway] = {}
        self._effects: list[Effect] = []
        self._last_load: tuple[Ticket, float] | None = None  # whose engine may be on probation
        self._drain_deadline = 0.0
        self._answer_deadline = math.inf  # of the effect that the running switch waits for
        self._all_known_at = -math.inf  # by then every living gateway has been heard of
        self._num_retries = 0
        self._retry_at: float | None = None
        self._num_tickets = 0
        self._num_failures = 0

    # --- what others read ---

    def take_effects(self) -> list[Effect]:
        """The decisions since the last call, in order; each is to be carried out once."""
        effects, self._effects = self._effects, []
        return effects

    def num_in_flight(self) -> int:
        """Requests in flight under the present epoch, as far as gateways have reported."""
        return sum(g.report.in_flight.get(self.epoch, 0) for g in self._gateways.values())

    def waiting(self) -> dict[str, Waiting]:
        """Who waits for which model, over all gateways."""
        total: dict[str, Waiting] = {}
        for gateway in self._gateways.values():
            for model, waiting in gateway.report.waiting.items():
                have = total.get(model, Waiting(0, waiting.oldest_arrival))
                total[model] = Waiting(
                    have.num_requests + waiting.num_requests,
                    min(have.oldest_arrival, waiting.oldest_arrival),
                )
        return {model: w for model, w in total.items() if w.num_requests}

    @property
    def switch_seconds(self) -> dict[str, float]:
        """Model -> what a switch to it costs in seconds, averaged."""
        return {m: s for m, s in self.costs.by_target.items() if m is not None}

    def estimate_s(self, target: str | None) -> float | None:
        """Seconds that a switch to `target` should take from now, its drain taken as 0.

        After the running switch, if that leads elsewhere. None: nothing like it was ever measured.
        """
        if self._is_resident(target) and not self.running:
            return 0.0
        if not self.running:
            return self.costs.estimate(self.holder, target)
        first_s = self.running.estimate_s
        second_s = self.costs.estimate(self.running.target, target)
        return None if first_s is None or second_s is None else first_s + second_s

    def waits_for(self) -> dict[str, int]:
        """What keeps the running switch: requests `in_flight`, `gateways` yet to close."""
        if self.state is not State.DRAINING:
            return {}
        open_gateways = [g for g in self._gateways.values() if g.report.closed_epoch < self.epoch]
        counts = {"in_flight": self.num_in_flight(), "gateways": len(open_gateways)}
        return {what: num for what, num in counts.items() if num}

    def would_switch(self, target: str | None) -> dict[str, Any]:
        """What an admin's `request_switch` would meet now; changes nothing.

        `blockers` are what it would end (a lease) or wait for (the running switch).
        """
        ahead = self._line()
        joined = next((n for n, t in enumerate(ahead) if _can_join(t, target)), len(ahead))
        blockers: list[dict[str, Any]] = []
        if self.held and self.held.model != target:
            blockers.append({"kind": "lease", "model": self.held.model, "owner": self.held.owner})
        if self.running and joined != 0:
            running = self.running
            blockers.append({"kind": "switch", "ticket": running.id, "to": running.target})
        return {
            "from": self.holder,
            "to": target,
            "in_flight": self.num_in_flight(),
            "queued_behind": joined,
            "estimate_s": self.estimate_s(target),
            "blockers": blockers,
        }

    def wait_bound_s(self, longest_switch_s: float) -> float:
        """The longest possible wait for a model, if no switch takes longer than this."""
        return self._rule.wait_bound_s(longest_switch_s)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` has something to decide, if nothing else happens before."""
        return min((at for at in self._deadlines(now) if at > now), default=None)

    # --- events ---

    def start(self, now: float, model: str) -> None:
        """The server starts with nothing running: bring `model` up."""
        self.desired = model
        self.queue.append(self._new_ticket(now, model, Cause.START, 0))
        self._advance(now)

    def adopt(self, now: float, model: str, epoch: int, endpoint: str) -> None:
        """The Switchboard restarts and finds this engine serving.

        Gateways that it has not heard of yet may have requests in flight: a drain waits for them.
        """
        self.epoch, self._last_epoch = epoch, max(self._last_epoch, epoch)
        self._all_known_at = now + self.policy.gateway_ttl_s
        self._serve(now, model, endpoint)
        self._advance(now)

    def request_switch(
        self, now: float, target: str | None, cause: Cause, drain_timeout_s: float | None = None
    ) -> Ticket:
        """A wish for `target` (None: nothing) to be resident.

        (1) Already so, and nothing else under way: a ticket that is done. (2) A switch to the
        same target is under way or queued, and has not failed: that ticket. (3) Else a new
        ticket, queued. An admin's wish for another model than the leased one ends the lease.
        """
        assert target is None or target in self.models, target
        if cause is Cause.ADMIN and self.held and self.held.model != target:
            self.held = None
        drain_s = self.policy.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        for ticket in self._line():  # (2)
            if _can_join(ticket, target):
                return self._join(now, ticket, cause, drain_s)
        return self._wish(now, target, cause, drain_s)

    def lease(self, now: float, model: str, seconds: float, owner: str) -> Ticket:
        """Keep `model` resident for `seconds` from when it serves; load it first if need be.

        While the lease stands neither requests nor idleness put the model out. It ends with its
        time, by `end_lease`, by an admin's switch to another model, or when a load of the model
        fails; the death of a serving engine does not end it. Switches wished for before it are
        made before it. The same owner may change its lease; anybody else's has to be ended first.

        Raises:
            LeaseHeld: somebody else's lease stands, granted or yet to be.
        """
        assert model in self.models, model
        self._end_lease_in_time(now)
        if self.held and self.held.owner != owner:
            raise LeaseHeld(self.held)
        self.held = Lease(model, owner, seconds)
        line = self._line()
        if line and _can_join(line[-1], model):
            return self._join(now, line[-1], Cause.LEASE, self.policy.drain_timeout_s)
        for ticket in self.queue:  # behind it others wait, who would put the model out again
            if ticket.target == model:
                self.queue.remove(ticket)
                self.queue.append(ticket)
                return self._join(now, ticket, Cause.LEASE, self.policy.drain_timeout_s)
        return self._wish(now, model, Cause.LEASE, self.policy.drain_timeout_s)

    def restore_lease(self, now: float, lease: Lease) -> None:
        """A lease that was granted before a restart, and whose time may not be over yet."""
        self.held = lease
        self._end_lease_in_time(now)

    def end_lease(self, now: float) -> None:
        """The lease, if one stands, is over; its model stays until somebody wants another."""
        self.held = None
        self._advance(now)

    def _wish(self, now: float, target: str | None, cause: Cause, drain_s: float) -> Ticket:
        ticket = self._new_ticket(now, target, cause, drain_s)
        if not self.running and not self.queue and self._is_resident(target):  # (1)
            self._finish(now, ticket, Outcome.DONE)
        else:  # (3)
            self.queue.append(ticket)
        self._advance(now)
        return ticket

    def watch(self, now: float, gateway: str) -> None:
        """A gateway is about to learn the present state; it may admit from now on."""
        known = self._gateways.get(gateway)
        if known:
            known.last_seen = now
        else:  # not always a new one: it may have requests in flight and have been silent
            self._gateways[gateway] = _Gateway(now, GatewayReport(-1, -1))
        self._advance(now)

    def report(self, now: float, gateway: str, report: GatewayReport) -> None:
        """A gateway says what it has in flight and waiting."""
        known = self._gateways.get(gateway)
        if known is None or report.seq > known.report.seq:
            self._gateways[gateway] = _Gateway(now, report, now)
            was_busy = known is not None and self._is_busy(known.report)
            if was_busy or self._is_busy(report):
                self._last_active = now
            self._last_active = max(self._last_active, min(report.last_active, now))
        self._advance(now)

    def prepared(self, now: float, ticket_id: str) -> None:
        """Nothing speaks against the running switch."""
        ticket = self.running
        if ticket is None or ticket.id != ticket_id or ticket.phase is not Phase.PREPARING:
            return
        if not self._is_wanted(ticket):
            self._abandon(now, ticket)
        elif self.state is State.EMPTY:
            self._load_target(now, ticket)
        elif self.state is State.LOST:
            self._unload(now)
        else:
            assert self.holder is not None
            self.state = State.DRAINING
            self._answer_deadline = math.inf
            self._left_at[self.holder] = now
            self._num_retries = 0  # an engine has worked since
            self._drain_deadline = now + ticket.drain_timeout_s
            ticket.enter(Phase.DRAINING, now)
        self._advance(now)

    def refused(self, now: float, ticket_id: str, problem: Problem) -> None:
        """The running switch can not succeed: the old model never notices."""
        ticket = self.running
        if ticket is None or ticket.id != ticket_id or ticket.phase is not Phase.PREPARING:
            return
        assert ticket.target is not None
        self._record_failure(now, ticket.target, ticket, problem)
        ticket.error = problem
        self._finish(now, ticket, Outcome.FAILED)
        self._advance(now)

    def unloaded(self, now: float, epoch: int) -> None:
        """The engine of `epoch` is gone."""
        if epoch != self.epoch or self.state is not State.UNLOADING:
            return
        self.state, self.holder, self.endpoint = State.EMPTY, None, None
        ticket = self.running
        assert ticket is not None
        if ticket.error and not ticket.is_rolling_back:
            self._finish(now, ticket, Outcome.FAILED)
        elif ticket.is_rolling_back:
            assert ticket.source is not None
            self._load(now, ticket.source, ticket)
        elif ticket.target is None:
            self._learn_cost(now, ticket)
            self._finish(now, ticket, Outcome.DONE)
        else:
            self._load_target(now, ticket)
        self._advance(now)

    def verifying(self, now: float, epoch: int) -> None:
        """The engine of `epoch` is up and is asked its known question."""
        if epoch == self.epoch and self.state is State.LOADING:
            self.state = State.VERIFYING
            if self.running:
                self.running.enter(Phase.VERIFYING, now)
            self._advance(now)

    def ready(self, now: float, epoch: int, endpoint: str) -> None:
        """The engine of `epoch` answered rightly: it serves."""
        if epoch != self.epoch or self.state not in (State.LOADING, State.VERIFYING):
            return
        ticket = self.running
        assert ticket is not None
        assert self.holder is not None
        self._serve(now, self.holder, endpoint)
        if ticket.is_rolling_back:
            self._last_load = None
            self._finish(now, ticket, Outcome.ROLLED_BACK)
        else:
            self._learn_cost(now, ticket)
            self.failures.pop(self.holder, None)
            self._last_load = (ticket, now)
            self._finish(now, ticket, Outcome.DONE)
        self._advance(now)

    def engine_lost(self, now: float, epoch: int, problem: Problem) -> None:
        """The engine of `epoch` failed: (1) as it loads, (2) as it drains, (3) as it serves."""
        if epoch != self.epoch:
            return
        if self.state in (State.LOADING, State.VERIFYING):  # (1)
            self._load_failed(now, problem)
        elif self.state is State.DRAINING:  # (2)
            self._unload(now)
        elif self.state is State.SERVING:  # (3)
            self._lose_serving_engine(now, problem)
        self._advance(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._advance(now)

    # --- decisions ---

    def _advance(self, now: float) -> None:
        """Do what the present state calls for; called at the end of every event."""
        for name in [n for n, g in self._gateways.items() if self._is_gone(g, now)]:
            del self._gateways[name]
        if self.state is State.DRAINING:
            self._advance_drain(now)
        if now >= self._answer_deadline:
            self._give_up_waiting(now)
        self._end_lease_in_time(now)
        for consider in (self._consider_demand, self._consider_idle, self._consider_retry):
            if self.running is None and not self.queue:
                consider(now)
        if self.running is None and self.queue:
            self._begin(now, self.queue.pop(0))
        self._grant_lease(now)

    def _give_up_waiting(self, now: float) -> None:
        """The running switch's effect has no answer in its time, as with a disk that hangs; one
        that comes later is not heard."""
        self._answer_deadline = math.inf
        ticket = self.running
        assert ticket is not None
        seconds = f"{self.policy.load_timeout_s:.0f} s"
        if ticket.phase is Phase.PREPARING:
            message = f"the files of {ticket.target} could not be read in {seconds}"
            self.refused(now, ticket.id, Problem("prepare_timeout", message))
        elif self.state in (State.LOADING, State.VERIFYING):
            message = f"{self.holder} was not ready in {seconds}"
            self._load_failed(now, Problem("load_timeout", message))

    def _advance_drain(self, now: float) -> None:
        is_drained = now >= self._all_known_at and all(
            g.report.closed_epoch >= self.epoch and not g.report.in_flight.get(self.epoch)
            for g in self._gateways.values()
        )
        if now >= self._drain_deadline:
            self.is_cut = True
        if is_drained or now >= self._drain_deadline + self.policy.cut_grace_s:
            assert self.running is not None
            self._unload(now, Parting.REST if self.running.target else Parting.CLEAR)

    def _consider_demand(self, now: float) -> None:
        """Switch for those who wait, if it is time to leave the resident model."""
        claims = self._claims(now)
        if not claims or self.held or self.state not in (State.EMPTY, State.SERVING):
            return
        if self.state is State.EMPTY or now >= self._leave_at(claims):
            drain_s = self.policy.drain_timeout_s
            self.queue.append(self._new_ticket(now, claims[0].model, Cause.REQUEST, drain_s))

    def _claims(self, now: float) -> list[Claim]:
        """Who waits for a model that does not serve and may be loaded; the oldest claim first."""
        claims = [
            Claim(m, max(w.oldest_arrival, self._left_at.get(m, -math.inf)), w.num_requests)
            for m, w in self.waiting().items()
            if m != self.holder and self._may_try(now, m)
        ]
        return sorted(claims, key=lambda claim: (claim.since, claim.model))

    def _leave_at(self, claims: list[Claim]) -> float:
        assert self.holder is not None
        own = self.waiting().get(self.holder)
        num_own = self.num_in_flight() + (own.num_requests if own else 0)
        per_s = self._arrivals.per_s.get(self.holder, 0.0)
        resident = Resident(self.holder, self.serving_since, num_own, self._last_active, per_s)
        return self._rule.leave_at(resident, claims, self.costs)

    def _consider_idle(self, now: float) -> None:
        """Unload a model that nobody has used for its time.

        A gateway's silence is no sign of that: each has to say so after the time is over.
        """
        due = self._idle_unload_at()
        if due is None or now < due or any(g.reported_at < due for g in self._gateways.values()):
            return
        self.queue.append(self._new_ticket(now, None, Cause.IDLE, self.policy.drain_timeout_s))

    def _idle_unload_at(self) -> float | None:
        if self.state is not State.SERVING or self.held or self.holder is None:
            return None
        seconds = self.policy.idle_unload_s.get(self.holder)
        if seconds is None or any(self._is_busy(g.report) for g in self._gateways.values()):
            return None
        return max(self.serving_since, self._last_active, self._all_known_at) + seconds

    def _grant_lease(self, now: float) -> None:
        """Its time begins once its model serves and no earlier wish will put that out."""
        if self.held is None or self.held.until is not None or self._line():
            return
        if self._is_resident(self.held.model):
            self.held = replace(self.held, until=now + self.held.seconds)

    def _end_lease_in_time(self, now: float) -> None:
        if self.held and self.held.until is not None and now >= self.held.until:
            self.held = None

    def _consider_retry(self, now: float) -> None:
        is_due = self._retry_at is not None and now >= self._retry_at
        if self.state is State.EMPTY and self.desired and is_due:
            self._retry_at = None
            self.queue.append(self._new_ticket(now, self.desired, Cause.RETRY, 0))

    def _begin(self, now: float, ticket: Ticket) -> None:
        if self._is_resident(ticket.target):
            self._finish(now, ticket, Outcome.DONE)
            self._advance(now)
            return
        if ticket.cause is Cause.LEASE and not self._is_wanted(ticket):
            self._abandon(now, ticket)
            self._advance(now)
            return
        self.running = ticket
        ticket.outcome = Outcome.RUNNING
        ticket.source = self.holder
        ticket.estimate_s = self.costs.estimate(ticket.source, ticket.target)
        ticket.enter(Phase.PREPARING, now)
        if ticket.target is None:
            self.prepared(now, ticket.id)
        else:
            self._ask(now, Prepare(ticket.id, ticket.target))

    def _unload(self, now: float, parting: Parting = Parting.END) -> None:
        assert self.holder is not None
        self.state = State.UNLOADING
        if self.running:
            self.running.enter(Phase.UNLOADING, now)
        self._answer_deadline = math.inf  # whoever carries it out bounds it
        self._effects.append(Unload(self.epoch, self.holder, parting))

    def _ask(self, now: float, effect: Effect) -> None:
        self._effects.append(effect)
        self._answer_deadline = now + self.policy.load_timeout_s

    def _load_target(self, now: float, ticket: Ticket) -> None:
        assert ticket.target is not None
        ticket.num_attempts += 1
        self._load(now, ticket.target, ticket)

    def _load(self, now: float, model: str, ticket: Ticket) -> None:
        self._last_epoch += 1
        self.epoch = self._last_epoch
        self.state, self.holder = State.LOADING, model
        self.is_cut = False
        ticket.enter(Phase.LOADING, now)
        self._ask(now, Load(self.epoch, model))

    def _serve(self, now: float, model: str, endpoint: str) -> None:
        self.state, self.holder, self.endpoint = State.SERVING, model, endpoint
        self._answer_deadline = math.inf
        self.serving_since = now
        self._learn_arrivals(now, model)
        self.desired = model
        self._retry_at = None

    def _load_failed(self, now: float, problem: Problem) -> None:
        """(1) A wrong answer earns one restart, (2) the old model comes back, (3) nothing does."""
        ticket = self.running
        assert ticket is not None
        assert self.holder is not None
        is_first = ticket.num_attempts == 1 and not ticket.is_rolling_back
        if problem.code == GOLDEN_MISMATCH and is_first:  # (1)
            self._unload(now)
            return
        self._record_failure(now, self.holder, ticket, problem)
        if not ticket.is_rolling_back and ticket.source not in (None, ticket.target):  # (2)
            ticket.error = problem
            ticket.is_rolling_back = True
            self.desired = ticket.source
        else:  # (3)
            ticket.error = ticket.error or problem
            ticket.is_rolling_back = False
        self._unload(now)

    def _lose_serving_engine(self, now: float, problem: Problem) -> None:
        """(1) Another switch prepares: it goes on. (2) Just loaded: the load failed after all.
        (3) The same model comes back."""
        assert self.holder is not None
        self.state = State.LOST
        self._left_at[self.holder] = now
        if self.running:  # (1)
            return
        loaded = self._last_load
        if loaded and now < loaded[1] + self.policy.probation_s:  # (2)
            self.running, self._last_load = loaded[0], None
            self.running.outcome = Outcome.RUNNING
            self._load_failed(now, problem)
        else:  # (3)
            self._num_retries = 0
            self._recover(now)

    def _recover(self, now: float) -> None:
        assert self.holder is not None
        ticket = self._new_ticket(now, self.holder, Cause.RECOVERY, 0)
        ticket.source, ticket.outcome = self.holder, Outcome.RUNNING
        self.running = ticket
        self._unload(now)

    def _is_wanted(self, ticket: Ticket) -> bool:
        """Whether what it is made for still holds, as it is about to disturb the resident model."""
        is_waited_for = ticket.target in self.waiting()
        match ticket.cause:
            case Cause.LEASE | Cause.REQUEST if self.held:
                return self.held.model == ticket.target
            case Cause.LEASE | Cause.REQUEST:
                return is_waited_for
            case _:
                return True

    def _abandon(self, now: float, ticket: Ticket) -> None:
        ticket.error = Problem("abandoned", "nobody waits for it any more")
        self._finish(now, ticket, Outcome.FAILED)

    def _finish(self, now: float, ticket: Ticket, outcome: Outcome) -> None:
        phase = {
            Outcome.DONE: Phase.READY,
            Outcome.ROLLED_BACK: Phase.ROLLED_BACK,
            Outcome.FAILED: Phase.FAILED,
        }[outcome]
        ticket.outcome = outcome
        ticket.enter(phase, now)
        if self.running is ticket:
            self.running = None
            self._answer_deadline = math.inf
        if ticket.target is None and outcome is Outcome.DONE:
            self.desired = None
        if self.state is State.LOST:  # the engine died while the switch was being prepared
            self._recover(now)
        elif self.state is State.EMPTY and outcome is Outcome.FAILED:
            pause_s = self.policy.failed_retry_s * 2.0 ** min(self._num_retries, 32)
            self._retry_at = now + min(pause_s, self.policy.retry_limit_s)
            self._num_retries += 1

    # --- bookkeeping ---

    def _new_ticket(
        self, now: float, target: str | None, cause: Cause, drain_timeout_s: float
    ) -> Ticket:
        self._num_tickets += 1
        ticket_id = f"sw-{self._boot}-{self._num_tickets}"
        ticket = Ticket(ticket_id, self.holder, target, cause, drain_timeout_s, now)
        ticket.enter(Phase.QUEUED, now)
        return ticket

    def _join(self, now: float, ticket: Ticket, cause: Cause, drain_timeout_s: float) -> Ticket:
        """A second wish for the same switch may shorten its drain, never lengthen it."""
        is_promoted = cause is Cause.LEASE and ticket.cause is Cause.REQUEST
        if cause is Cause.ADMIN or is_promoted:
            ticket.cause = cause  # it goes on although the waiting requests may leave
        if drain_timeout_s < ticket.drain_timeout_s:
            ticket.drain_timeout_s = drain_timeout_s
            if self.state is State.DRAINING and ticket is self.running:
                self._drain_deadline = min(self._drain_deadline, now + drain_timeout_s)
        self._advance(now)
        return ticket

    def _is_resident(self, model: str | None) -> bool:
        if model is None:
            return self.state is State.EMPTY
        return self.holder == model and self.state is State.SERVING

    def _may_try(self, now: float, model: str) -> bool:
        failure = self.failures.get(model)
        return failure is None or now >= failure.retry_at

    def _record_failure(self, now: float, model: str, ticket: Ticket, problem: Problem) -> None:
        self._num_failures += 1
        retry_at = now + self.policy.failed_retry_s
        self.failures[model] = Failure(self._num_failures, problem, retry_at, ticket.id)
        if self.held and self.held.model == model:
            self.held = None

    def _learn_arrivals(self, now: float, model: str) -> None:
        away_s = now - self._left_at.get(model, now)
        if away_s > 0:
            gathered = self.waiting().get(model)
            self._arrivals.learn(model, gathered.num_requests if gathered else 0, away_s)

    def _learn_cost(self, now: float, ticket: Ticket) -> None:
        """Average the time from the old model's last possible answer to the new one's first."""
        began = next(
            at for phase, at in ticket.history if phase in (Phase.UNLOADING, Phase.LOADING)
        )
        self.costs.learn(ticket.source, ticket.target, now - began)

    def _line(self) -> list[Ticket]:
        return [*([self.running] if self.running else []), *self.queue]

    def _is_busy(self, report: GatewayReport) -> bool:
        return bool(report.in_flight.get(self.epoch)) or self.holder in report.waiting

    def _is_gone(self, gateway: _Gateway, now: float) -> bool:
        return now >= gateway.last_seen + self.policy.gateway_ttl_s

    def _deadlines(self, now: float) -> Iterator[float]:
        for gateway in self._gateways.values():
            yield gateway.last_seen + self.policy.gateway_ttl_s
        if self._answer_deadline < math.inf:
            yield self._answer_deadline
        if self.state is State.DRAINING:
            yield self._drain_deadline + (self.policy.cut_grace_s if self.is_cut else 0)
            yield self._all_known_at
        if self.running is None:
            if self._retry_at is not None:
                yield self._retry_at
            for model in self.waiting():
                if model in self.failures:
                    yield self.failures[model].retry_at
        if self.held and self.held.until is not None:
            yield self.held.until
        if self.running is None and self.state is State.SERVING:
            claims = self._claims(now)
            if claims and not self.held:
                yield self._leave_at(claims)
            idle_at = self._idle_unload_at()
            if idle_at is not None:
                yield idle_at


def _can_join(ticket: Ticket, target: str | None) -> bool:
    return ticket.target == target and not ticket.error
