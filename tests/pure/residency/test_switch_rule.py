"""When the resident model is left: each rule by itself, and the whole on simulated traffic."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.residency.switch_rule import (
    Arrivals,
    Costs,
    Demand,
    ServingModel,
    SwitchRule,
)
from tests.pure.residency.driver import MODELS
from tests.pure.residency.simulation import (
    CALM_POLICY,
    TRACES,
    Request,
    Simulation,
    Trace,
    adversarial,
    alternating,
    bursts,
    closed_loop,
    heavy_and_light,
    mixed,
    two_singles,
)

RULE = SwitchRule(num_models=3, max_wait_s=120, min_resident_s=10)
SHARE_S = 100 / 3  # (120 - 2 * 10) / 3


def costs(seconds: float = 15) -> Costs:
    known = Costs()
    for old in MODELS:
        for new in MODELS:
            if old != new:
                known.learn(old, new, seconds)
    return known


def resident(num_requests: int = 1, serving_since: float = 0, last_active: float = 1000):
    return ServingModel("a", serving_since, num_requests, last_active)


# --- costs ---


def test_cost_of_a_pair_is_an_exponential_average():
    known = Costs()
    known.learn("a", "b", 10)
    known.learn("a", "b", 20)
    assert known.estimate("a", "b") == pytest.approx(13)


def test_cost_of_an_unknown_pair_is_what_the_target_cost_from_elsewhere():
    known = Costs()
    known.learn(None, "b", 10)
    assert known.estimate("a", "b") == 10
    assert known.estimate("b", "a") is None
    assert known.guess("b", "a") == 10


def test_nothing_is_known_before_the_first_switch():
    assert Costs().estimate("a", "b") is None
    assert Costs().guess("a", "b") is None
    assert Costs().estimate("a", "a") == 0


def test_arrivals_are_the_requests_that_came_while_the_model_was_away():
    known = Arrivals()
    known.learn("a", 6, 12)
    assert known.per_s == {"a": 0.5}
    known.learn("a", 0, 10)
    assert known.per_s == {"a": pytest.approx(0.35)}


# --- the rule ---


def test_idle_model_is_left_at_once():
    idle = resident(num_requests=0, serving_since=100, last_active=50)
    assert RULE.switch_at(idle, [Demand("b", 110, 1)], costs()) <= 110


def test_idle_model_that_was_just_busy_lingers_a_twentieth_of_the_price():
    idle = resident(num_requests=0, serving_since=100, last_active=200)
    assert RULE.switch_at(idle, [Demand("b", 200, 1)], costs(10)) == 201
    assert RULE.switch_at(idle, [Demand("b", 200, 1)], costs(1000)) == 201.5


def test_pause_in_dense_traffic_is_three_of_its_pauses_long():
    idle = replace(resident(num_requests=0, serving_since=100, last_active=200), arrivals_per_s=1)
    assert RULE.switch_at(idle, [Demand("b", 200, 1)], costs(10)) == 203
    sparse = replace(idle, arrivals_per_s=0.7)  # three pauses are more than a fifth of the 20 s
    assert RULE.switch_at(sparse, [Demand("b", 200, 1)], costs(10)) == 201


def test_busy_model_is_left_when_others_waited_as_long_as_its_own_would():
    demand = Demand("b", 100, 1)
    assert RULE.switch_at(resident(num_requests=1), [demand], costs(15)) == 130
    assert RULE.switch_at(resident(num_requests=2), [demand], costs(15)) == 160


def test_price_counts_the_requests_that_will_come_meanwhile():
    busy = replace(resident(num_requests=1), arrivals_per_s=0.02)  # 0.6 in the 30 s
    assert RULE.switch_at(busy, [Demand("b", 100, 1)], costs(15)) == pytest.approx(148)


def test_waiting_before_the_resident_model_served_does_not_count():
    demand = Demand("b", 80, 1)
    assert RULE.switch_at(resident(serving_since=100), [demand], costs(15)) == 130


def test_many_waiting_requests_make_the_switch_come_sooner():
    assert RULE.switch_at(resident(), [Demand("b", 100, 5)], costs(15)) == 110


def test_a_second_model_adds_its_waiters_and_its_leg_of_the_round_trip():
    both = [Demand("b", 100, 2), Demand("c", 100, 1)]
    assert RULE.switch_at(resident(), both[:1], costs(15)) == 120
    assert RULE.switch_at(resident(), both, costs(15)) == 118


def test_busy_model_serves_its_minimum_whatever_waits():
    demands = [Demand("b", 0, 1000), Demand("c", 0, 1000)]
    assert RULE.switch_at(resident(serving_since=500), demands, costs(0.1)) == 510


def test_without_a_known_price_the_bound_decides():
    at = RULE.switch_at(resident(), [Demand("b", 100, 9)], Costs())
    assert at == pytest.approx(100 + 120 - SHARE_S)


def test_each_demand_ahead_brings_the_leave_forward_by_a_switch_and_a_turn():
    demands = [Demand("b", 100, 1), Demand("c", 100, 1)]
    at = RULE.switch_at(resident(), demands, costs(10_000))
    assert at == pytest.approx(100 + 120 - 2 * SHARE_S - 10)


def test_bound_is_max_wait_while_no_switch_takes_longer_than_its_share():
    assert RULE.wait_bound_s(SHARE_S) == 120
    assert RULE.wait_bound_s(SHARE_S + 5) == pytest.approx(135)


# --- the whole, on simulated traffic ---


@st.composite
def worlds(draw):
    """A policy, the cost of each load, and requests of which some lose patience."""
    seconds = st.floats(0, 30).map(lambda s: round(s, 1))
    min_resident_s = draw(st.sampled_from([0.0, 2.0, 10.0]))
    policy = replace(
        CALM_POLICY,
        max_wait_s=2 * min_resident_s + draw(st.sampled_from([1.0, 30.0, 90.0, 300.0])),
        min_resident_s=min_resident_s,
        drain_timeout_s=draw(st.sampled_from([0.0, 5.0, 60.0])),
    )
    load_s = {model: draw(seconds) for model in MODELS}
    at, requests = 0.0, []
    patience = st.sampled_from([math.inf, math.inf, 5.0, 40.0])
    request = st.tuples(st.sampled_from(MODELS), st.floats(0, 20), seconds, patience)
    for model, pause_s, service_s, patience_s in draw(st.lists(request, min_size=1, max_size=60)):
        at += pause_s
        requests.append(Request(model, at, service_s, patience_s=patience_s))
    return policy, load_s, Trace("any", requests)


@settings(max_examples=300, derandomize=True)
@given(worlds())
def test_no_request_waits_past_the_bound(world):
    """All fit into service, so that each waits for its model alone, and once."""
    policy, load_s, trace = world
    simulation = Simulation(trace, max_in_service=10_000, load_s=load_s, policy=policy)
    outcome = simulation.run()
    bound_s = simulation.wait_bound_s(outcome.longest_switch_s)
    assert max(outcome.waits, default=0) <= bound_s + 1e-6


@settings(max_examples=100, derandomize=True)
@given(worlds())
def test_no_busy_model_is_left_before_its_minimum(world):
    policy, load_s, trace = world
    outcome = Simulation(trace, load_s=load_s, policy=policy).run()
    assert min(outcome.busy_turns, default=math.inf) >= policy.min_resident_s - 1e-6


@pytest.mark.parametrize("make", TRACES, ids=lambda make: make.__name__)
def test_bound_holds_on_the_seeded_traces(make):
    simulation = Simulation(make(random.Random(1)), max_in_service=10_000)
    outcome = simulation.run()
    assert outcome.max_s <= simulation.wait_bound_s(outcome.longest_switch_s)
    assert min(outcome.busy_turns, default=math.inf) >= CALM_POLICY.min_resident_s - 1e-6


@pytest.mark.parametrize("make", [alternating, mixed, bursts, adversarial])
@pytest.mark.parametrize("seed", [1, 2])
def test_switches_are_a_third_of_fifo_s(make, seed):
    fifo = Simulation(make(random.Random(seed)), is_fifo=True).run()
    ours = Simulation(make(random.Random(seed))).run()
    assert len(ours.waits) == len(fifo.waits)
    assert ours.num_switches <= fifo.num_switches / 3
    assert ours.mean_s < fifo.mean_s
    assert ours.max_s < fifo.max_s


@pytest.mark.parametrize(("make", "share"), [(closed_loop, 1 / 3), (two_singles, 1 / 3)])
def test_clients_in_a_loop_cause_a_third_of_fifo_s_switches_a_request(make, share):
    """How many requests they send depends on how they are served: counted a request."""
    fifo = Simulation(make(random.Random(1)), is_fifo=True).run()
    ours = Simulation(make(random.Random(1))).run()
    assert ours.thrash_ratio <= fifo.thrash_ratio * share
    assert len(ours.waits) >= 2 * len(fifo.waits)


@pytest.mark.parametrize("seed", range(4))
def test_light_models_beside_a_heavy_one_cause_a_third_of_fifo_s_switches(seed):
    """The light ones wait for each other, within the bound, and the heavy one's less."""
    fifo = Simulation(heavy_and_light(random.Random(seed)), is_fifo=True).run()
    simulation = Simulation(heavy_and_light(random.Random(seed)))
    ours = simulation.run()
    assert ours.num_switches <= fifo.num_switches / 3
    assert ours.mean_s < fifo.mean_s / 10
    assert ours.max_s < simulation.wait_bound_s(ours.longest_switch_s)
