"""Traffic against the real machine in virtual time: `python -m tests.pure.residency.simulation`.

One place, one gateway that reports at once, engines that take given seconds to load. `fifo` serves
strictly in order of arrival, so it switches whenever the next request is for another model; it is
what the scheduler is measured against. Everything is seeded: a run prints the same table each time.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from deployments.residency import (
    Cause,
    Event,
    GatewayReport,
    Load,
    Phase,
    Policy,
    Prepare,
    Residency,
    State,
    Unload,
    Waiting,
    events,
)
from deployments.residency.switch_rule import SwitchRule
from tests.pure.residency.driver import MODELS, POLICY

PREPARE_S, UNLOAD_S = 0.5, 1.0
LOAD_S = {"a": 6.0, "b": 10.0, "c": 8.0}
# A single gateway that reports at each change is never silent.
CALM_POLICY = replace(POLICY, gateway_ttl_s=math.inf, probation_s=0.0)


@dataclass(eq=False)
class Request:
    model: str
    arrives_at: float
    service_s: float
    client: "Client | None" = None
    patience_s: float = math.inf  # it leaves if it is not admitted by then
    admitted_at: float = math.inf

    @property
    def waited_s(self) -> float:
        return self.admitted_at - self.arrives_at


@dataclass(frozen=True)
class Client:
    """Sends one request after the other, `think_s` apart, until `stops_at`."""

    model: str
    service_s: float
    think_s: float
    starts_at: float
    stops_at: float


@dataclass(frozen=True)
class Trace:
    name: str
    requests: Sequence[Request] = ()
    clients: Sequence[Client] = ()


@dataclass
class Outcome:
    """What became of a trace. Waits are from arrival to admission, in seconds."""

    waits: list[float]
    num_switches: int
    longest_switch_s: float  # from its preparation to serving
    busy_turns: list[float]  # how long each model had served that was busy as a switch began
    ended_at: float

    @property
    def thrash_ratio(self) -> float:
        return self.num_switches / len(self.waits)

    @property
    def mean_s(self) -> float:
        return sum(self.waits) / len(self.waits)

    @property
    def p95_s(self) -> float:
        return sorted(self.waits)[math.ceil(0.95 * len(self.waits)) - 1]

    @property
    def max_s(self) -> float:
        return max(self.waits)


@dataclass
class Simulation:
    """One run of a trace. `load_s` maps a model to the seconds its load takes."""

    trace: Trace
    is_fifo: bool = False
    max_in_service: int = 10
    load_s: dict[str, float] = field(default_factory=lambda: LOAD_S)
    policy: Policy = CALM_POLICY
    now: float = 0.0

    def __post_init__(self) -> None:
        self.machine = Residency(MODELS, self.policy)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._waiting: list[Request] = []  # in order of arrival
        self._in_flight: dict[int, int] = {}  # epoch -> requests
        self._all: list[Request] = []
        self._loads: list[Load] = []
        self._longest_switch_s = 0.0
        self._busy_turns: list[float] = []
        self._last_active = 0.0
        self._num_reports = 0

    def wait_bound_s(self, longest_switch_s: float) -> float:
        """The longest wait that the rule promises."""
        policy = self.policy
        rule = SwitchRule(len(MODELS), policy.max_wait_s, policy.min_resident_s)
        return rule.wait_bound_s(longest_switch_s)

    def run(self) -> Outcome:
        """Play the trace from a resident first model until everybody is served."""
        self.machine.handle(events.Started(self.now, MODELS[0]))
        for request in self.trace.requests:
            self._at(request.arrives_at, lambda r=request: self._arrive(replace(r)))  # type: ignore[misc]
        for client in self.trace.clients:
            self._at(client.starts_at, lambda c=client: self._send_next(c))  # type: ignore[misc]
        self._settle()
        for _ in range(1_000_000):
            deadline = self.machine.next_deadline(self.now)
            event_at = self._events[0][0] if self._events else math.inf
            if deadline is not None and deadline < event_at:
                self.now = deadline
                self.machine.handle(events.Ticked(self.now))
            elif self._events:
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                break
            self._settle()
        assert not self._waiting, "a request is never served"
        return Outcome(
            [r.waited_s for r in self._all if r.admitted_at < math.inf],
            len(self._loads) - 1,
            self._longest_switch_s,
            self._busy_turns,
            self.now,
        )

    def _at(self, when: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _after(self, seconds: float, event: Callable[[], object]) -> None:
        self._at(self.now + seconds, event)

    def _answer_after(self, seconds: float, event: Callable[[float], Event]) -> None:
        self._after(seconds, lambda: self.machine.handle(event(self.now)))

    # --- clients ---

    def _send_next(self, client: Client) -> None:
        if self.now < client.stops_at:
            self._arrive(Request(client.model, self.now, client.service_s, client))

    def _arrive(self, request: Request) -> None:
        self._all.append(request)
        self._waiting.append(request)
        if request.patience_s < math.inf:
            self._after(request.patience_s, lambda: self._give_up(request))

    def _give_up(self, request: Request) -> None:
        if request in self._waiting:
            self._waiting.remove(request)

    def _end(self, request: Request, epoch: int) -> None:
        self._in_flight[epoch] -= 1
        self._last_active = self.now
        if client := request.client:
            self._after(client.think_s, lambda: self._send_next(client))

    # --- the gateway and the Switchboard ---

    def _settle(self) -> None:
        """Admit, report and carry out until nothing changes any more."""
        self._admit()
        self._report()
        while effects := self.machine.take_effects():
            for effect in effects:
                self._carry_out(effect)
            self._admit()
            self._report()

    def _admit(self) -> None:
        machine = self.machine
        for request in list(self._waiting):
            is_served = machine.state is State.SERVING and machine.holder == request.model
            if is_served and self._in_flight.get(machine.epoch, 0) < self.max_in_service:
                self._waiting.remove(request)
                self._begin(request, machine.epoch)
            elif self.is_fifo:  # no request overtakes another
                if not is_served and not machine.running:
                    machine.handle(events.SwitchRequested(self.now, request.model, Cause.ADMIN))
                break

    def _begin(self, request: Request, epoch: int) -> None:
        request.admitted_at = self._last_active = self.now
        self._in_flight[epoch] = self._in_flight.get(epoch, 0) + 1
        self._after(request.service_s, lambda: self._end(request, epoch))

    def _report(self) -> None:
        machine = self.machine
        waiting: dict[str, Waiting] = {}
        for request in () if self.is_fifo else self._waiting:
            have = waiting.get(request.model, Waiting(0, self.now - request.arrives_at))
            waiting[request.model] = Waiting(have.num_requests + 1, have.oldest_age_s)
        is_open = machine.state in (State.LOADING, State.VERIFYING, State.SERVING)
        self._num_reports += 1
        report = GatewayReport(
            "gateway",
            self._num_reports,
            machine.epoch - is_open,
            {epoch: num for epoch, num in self._in_flight.items() if num},
            waiting,
            self.now - self._last_active,
        )
        machine.handle(events.GatewayReported(self.now, report))

    def _carry_out(self, effect: Prepare | Unload | Load) -> None:
        match effect:
            case Prepare(ticket_id):
                self._note_turn()
                self._answer_after(PREPARE_S, lambda now: events.Prepared(now, ticket_id))
            case Unload(epoch):
                self._answer_after(UNLOAD_S, lambda now: events.EngineUnloaded(now, epoch))
            case Load(epoch, model):
                self._loads.append(effect)
                self._after(self.load_s[model], lambda: self._ready(epoch))

    def _note_turn(self) -> None:
        """A switch was just decided on."""
        machine = self.machine
        is_awaited = any(r.model == machine.holder for r in self._waiting)
        if machine.state is State.SERVING and (machine.num_in_flight() or is_awaited):
            self._busy_turns.append(self.now - machine.serving_since)

    def _ready(self, epoch: int) -> None:
        ticket = self.machine.running
        self.machine.handle(events.EngineReady(self.now, epoch, "/run/engine.sock"))
        if ticket:
            began = next(at for phase, at in ticket.history if phase is Phase.PREPARING)
            self._longest_switch_s = max(self._longest_switch_s, self.now - began)


# --- traces ---


def alternating(rng: random.Random) -> Trace:
    """Each request is for the next model."""
    requests = [Request(MODELS[n % 3], 4.0 * n, 2.0) for n in range(200)]
    return Trace("alternating", requests)


def mixed(rng: random.Random) -> Trace:
    """Three models as much asked for, in no order."""
    return Trace("mixed", _arrivals(rng, [("a", 5.0), ("b", 5.0), ("c", 5.0)], 1200))


def bursts(rng: random.Random) -> Trace:
    """Somebody works on one thing, pauses, and another one on another."""
    requests, at = [], 0.0
    while at < 1200:
        model = rng.choice(MODELS)
        requests += [
            Request(model, at + rng.uniform(0, 15), 3.0) for _ in range(rng.randint(3, 12))
        ]
        at += rng.expovariate(1 / 15)
    return Trace("bursts", sorted(requests, key=lambda r: r.arrives_at))


def heavy_and_light(rng: random.Random) -> Trace:
    """One model is busy, two are asked for now and then."""
    return Trace("heavy + 2 light", _arrivals(rng, [("a", 1.0), ("b", 40.0), ("c", 40.0)], 1200))


def adversarial(rng: random.Random) -> Trace:
    """Two models never pause and have more waiting than fits; single requests for the third."""
    flood = [Request("ab"[n % 2], 0.2 * n, 3.0) for n in range(3000)]
    lonely = [Request("c", 47.0 * n + 0.1, 1.0) for n in range(12)]
    return Trace("adversarial", sorted(flood + lonely, key=lambda r: r.arrives_at))


def closed_loop(rng: random.Random) -> Trace:
    """Clients that send one request after the other."""
    clients = [
        Client(model, 2.0, rng.uniform(0.05, 0.5), rng.uniform(0, 5), 1200)
        for model in ["a", "b", "b", "c"]
    ]
    return Trace("closed loop", clients=clients)


def two_singles(rng: random.Random) -> Trace:
    """Two clients, each alone with its model, with a short pause between requests."""
    clients = [Client("a", 2.0, 0.3, 0, 1200), Client("b", 2.0, 0.3, 1, 1200)]
    return Trace("two singles", clients=clients)


def _arrivals(rng: random.Random, rates: list[tuple[str, float]], until: float) -> list[Request]:
    requests = []
    for model, every_s in rates:
        at = rng.expovariate(1 / every_s)
        while at < until:
            requests.append(Request(model, at, rng.uniform(1, 5)))
            at += rng.expovariate(1 / every_s)
    return sorted(requests, key=lambda r: r.arrives_at)


TRACES = [alternating, mixed, bursts, heavy_and_light, adversarial, closed_loop, two_singles]


def main() -> None:
    """Print the table."""
    columns = "switches", "per request", "mean s", "p95 s", "max s", "served", "bound s"
    print(f"{'':27}" + "".join(f"{column:>13}" for column in columns))
    for make in TRACES:
        for is_fifo in (True, False):
            simulation = Simulation(make(random.Random(1)), is_fifo)
            outcome = simulation.run()
            bound_s = simulation.wait_bound_s(outcome.longest_switch_s)
            name = f"{simulation.trace.name:17}{'fifo' if is_fifo else 'scheduler':10}"
            numbers = [outcome.mean_s, outcome.p95_s, outcome.max_s]
            print(
                f"{name}{outcome.num_switches:13}{outcome.thrash_ratio:13.3f}"
                + "".join(f"{number:13.1f}" for number in numbers)
                + f"{len(outcome.waits):13}{'' if is_fifo else format(bound_s, '.0f'):>13}"
            )


if __name__ == "__main__":
    main()
