"""The rule: when to switch from the serving model to one that requests wait for. Pure.

The rule, with M models, W = `max_wait_s` and R = `min_resident_s`:

(1) An idle model is switched away from at once; if it was busy a moment ago, after a short linger,
    because a client that sends one request after the other is between two of them. The linger is
    three of the pauses between its requests where these are dense: such a model is busy, and idle
    by chance.
(2) A busy one is switched away from once the others' waiting is worth it: they have waited, since
    it began to serve, as many seconds in sum as its own requests would for a round trip over the
    waiting models, those that will come meanwhile among them (the rent has reached the price of the
    skis). Never before it has served R.
(3) Whatever it costs, the switch is in time for every request. Between a request and its model lie
    at most M switches: one under way, one to each model with an older demand, and one to its own. W
    gives each of them the share s = (W - (M - 1) R) / M, and each model in between its R. The
    switch for the demand of rank j (0: next) is therefore owed at demand + W - (j + 1) s - j R.

A demand begins when the oldest request came, or when the model last ceased to admit if that is
later: models take turns, and a model with a long queue does not come first again and again.

The bound that follows: a wait for a model that does not serve ends, by its serving, within

    W + M * max(0, S - s)        S: the longest switch in it, from its preparation to serving

so within `max_wait_s` as long as no switch takes longer than its share. Proof: let the demand begin
at 0 with rank j <= M - 2. The model that serves, or is about to, does so from S at the latest, and
is left at the latest at max(S + R, W - (j + 1) s - j R). Each older demand takes S + R more, the
own switch S. Ranks only fall, as a later demand ranks behind. For S <= s the sum is at most W (with
j = M - 2 the two arms of the maximum are then equal), and a longer S adds M (S - s) at most.

A drain may take its whole timeout, so the worst S is `drain_timeout_s` + `cut_grace_s` + what the
switch costs. Not promised: a place in service once the model serves, where more requests wait than
fit; and nothing while an admin's switch, a lease or a failed load comes in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_OLD = 0.7  # weight of the past in an average: three switches make a change of disk or driver felt
# Measured with tests/pure/residency/simulation.py: for clients that send one request after the
# other, a linger makes a third as many switches a request and halves their wait. It costs others
# its length at most.
_LINGER_SHARE = 0.05  # of a round trip
_LINGER_LIMIT_S = 1.5  # longer pauses are a person thinking, not a client's loop
# One in twenty pauses between independent requests is longer than three mean ones. To wait as long
# makes a seventh fewer switches beside a busy model, and the mean wait no longer (same simulation).
_NUM_PAUSES = 3
_DENSE_SHARE = 0.2  # of a round trip, that so many pauses may take


@dataclass
class Costs:
    """Seconds that switches took, from the old model's last answer to the new one serving.

    Exponential averages; `None` stands for an empty place.
    """

    by_pair: dict[tuple[str | None, str | None], float] = field(default_factory=dict)
    by_target: dict[str | None, float] = field(default_factory=dict)

    def learn(self, old: str | None, new: str | None, seconds: float) -> None:
        self.by_pair[old, new] = _averaged(self.by_pair.get((old, new)), seconds)
        self.by_target[new] = _averaged(self.by_target.get(new), seconds)

    def estimate(self, old: str | None, new: str | None) -> float | None:
        """The pair's cost, or else what the target cost from wherever; None if neither is known."""
        if old == new:
            return 0.0
        return self.by_pair.get((old, new), self.by_target.get(new))

    def guess(self, old: str | None, new: str | None) -> float | None:
        """As `estimate`, or else the worst of all costs; None before the first switch."""
        known = self.estimate(old, new)
        return max(self.by_pair.values(), default=None) if known is None else known


@dataclass
class Arrivals:
    """Requests a second for each model, seen while it was away: exponential averages."""

    per_s: dict[str, float] = field(default_factory=dict)

    def learn(self, model: str, num_gathered: int, away_s: float) -> None:
        """`num_gathered` requests waited for `model` when it came back after `away_s` > 0."""
        self.per_s[model] = _averaged(self.per_s.get(model), num_gathered / away_s)


def _averaged(old: float | None, new: float) -> float:
    return new if old is None else _OLD * old + (1 - _OLD) * new


@dataclass(frozen=True)
class Demand:
    """The requests that wait for a model."""

    model: str
    since: float  # the oldest one's arrival, or when the model ceased to admit if that is later
    num_requests: int


@dataclass(frozen=True)
class ServingModel:
    """The serving model, as the decision sees it."""

    model: str
    serving_since: float
    num_requests: int  # in flight, or waiting for a place in service
    last_active: float  # when a request for any model last began or ended
    arrivals_per_s: float = 0.0  # of its requests while it was away, as far as that is known


@dataclass(frozen=True)
class SwitchRule:
    """The rule above for one configuration; durations in seconds."""

    num_models: int
    max_wait_s: float
    min_resident_s: float

    @property
    def switch_share_s(self) -> float:
        """What one switch may take for `max_wait_s` to hold; settings keep it above 0."""
        turns_s = (self.num_models - 1) * self.min_resident_s
        return (self.max_wait_s - turns_s) / self.num_models

    def wait_bound_s(self, longest_switch_s: float) -> float:
        """The longest possible wait for a model that does not serve."""
        excess_s = max(0.0, longest_switch_s - self.switch_share_s)
        return self.max_wait_s + self.num_models * excess_s

    def switch_at(self, serving: ServingModel, demands: Sequence[Demand], costs: Costs) -> float:
        """When to switch to the first of `demands` (oldest first, not empty) if nothing changes."""
        earliest = serving.serving_since + self.min_resident_s
        owed_at = max(earliest, self._owed_at(demands))  # (3)
        round_trip_s = _round_trip_s(serving, demands, costs)
        if not serving.num_requests:
            return min(owed_at, _idle_at(serving, round_trip_s))  # (1)
        return min(owed_at, max(earliest, self._worth_at(serving, demands, round_trip_s)))  # (2)

    def _owed_at(self, demands: Sequence[Demand]) -> float:
        share_s, turn_s = self.switch_share_s, self.min_resident_s
        return min(
            demand.since + self.max_wait_s - (rank + 1) * share_s - rank * turn_s
            for rank, demand in enumerate(demands)
        )

    def _worth_at(
        self, serving: ServingModel, demands: Sequence[Demand], round_trip_s: float | None
    ) -> float:
        """When the waiting seconds reach the price. Each demand adds (t - begin) * weight: its
        requests all waited since `begin`, or came evenly since, which is half of that."""
        if round_trip_s is None:
            return float("inf")  # no price is known: (3) decides
        total_weight, total_weighted_begin = 0.0, 0.0
        for demand in demands:
            has_waited_throughout = demand.since <= serving.serving_since
            weight = demand.num_requests if has_waited_throughout else (demand.num_requests + 1) / 2
            total_weight += weight
            total_weighted_begin += weight * max(demand.since, serving.serving_since)
        will_come = serving.arrivals_per_s * round_trip_s
        price = (serving.num_requests + will_come) * round_trip_s
        return (price + total_weighted_begin) / total_weight


def _idle_at(serving: ServingModel, round_trip_s: float | None) -> float:
    if serving.last_active < serving.serving_since or round_trip_s is None:
        return serving.serving_since
    linger_s = min(_LINGER_SHARE * round_trip_s, _LINGER_LIMIT_S)
    if serving.arrivals_per_s * _DENSE_SHARE * round_trip_s >= _NUM_PAUSES:
        linger_s = max(linger_s, _NUM_PAUSES / serving.arrivals_per_s)
    return serving.last_active + linger_s


def _round_trip_s(serving: ServingModel, demands: Sequence[Demand], costs: Costs) -> float | None:
    """What the switches to the models of `demands`, one after the other, and back would take."""
    stops = (serving.model, *(demand.model for demand in demands), serving.model)
    legs = [costs.guess(old, new) for old, new in pairwise(stops)]
    return sum(leg for leg in legs if leg is not None) if None not in legs else None
