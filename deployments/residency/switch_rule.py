"""The rule: when to switch from the serving model to one that requests wait for. Pure.

The rule, with M models, W = `max_wait_s` and R = `min_resident_s`:

(1) An idle model is left at once. If it was busy a moment ago, it is left after a short linger,
    because a client that sends one request after the other may be between two of them. Where the
    pauses between the model's requests are short, the linger is three of them: such a model is busy
    and only idle by chance.
(2) A busy model is left once the others have waited long enough. Since it began to serve, they have
    waited as many seconds in sum as its own requests would wait for a round trip over the waiting
    models; requests that will come meanwhile count too (the rent has reached the price of the
    skis). It is never left before it has served for R.
(3) Whatever it costs, the switch is in time for every request. Between a request and its model lie
    at most M switches: one under way, one to each model with an older demand, and one to its own. W
    gives each of them the share s = (W - (M - 1) R) / M, and each model in between its R. The
    switch for the demand of rank j (0: next) is therefore owed at demand + W - (j + 1) s - j R.

A demand begins when its oldest request came, or when the model last stopped admitting if that is
later. So models take turns, and a model with a long queue does not come first again and again.

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

_OLD = 0.7  # weight of the past in an average: after three switches a new disk or driver shows
# Measured with tests/pure/residency/simulation.py: for clients that send one request after the
# other, a linger divides the switches for each request by three and halves their wait. It costs
# other clients its own length at most.
_LINGER_SHARE = 0.05  # of a round trip
_LINGER_LIMIT_S = 1.5  # longer pauses are a person thinking, not a client's loop
# One in twenty pauses between independent requests is longer than three mean pauses. Waiting that
# long saves a seventh of the switches beside a busy model; the mean wait stays (same simulation).
_NUM_PAUSES = 3
_DENSE_SHARE = 0.2  # of a round trip: the longest that `_NUM_PAUSES` pauses may take


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
        """The pair's cost, else the target's cost from any model; None if neither is known."""
        if old == new:
            return 0.0
        return self.by_pair.get((old, new), self.by_target.get(new))

    def guess(self, old: str | None, new: str | None) -> float | None:
        """The estimate, else the highest of all costs; None before the first switch."""
        known = self.estimate(old, new)
        return max(self.by_pair.values(), default=None) if known is None else known


@dataclass
class Arrivals:
    """Requests a second for each model while it did not serve: exponential averages."""

    per_s: dict[str, float] = field(default_factory=dict)

    def learn(self, model: str, num_gathered: int, away_s: float) -> None:
        """Record that `num_gathered` requests came for `model` while it was away, `away_s` > 0."""
        self.per_s[model] = _averaged(self.per_s.get(model), num_gathered / away_s)


def _averaged(old: float | None, new: float) -> float:
    return new if old is None else _OLD * old + (1 - _OLD) * new


@dataclass(frozen=True)
class Demand:
    """The requests that wait for a model."""

    model: str
    since: float  # when the oldest came, or when the model stopped admitting if that is later
    num_requests: int


@dataclass(frozen=True)
class ServingModel:
    """What the rule needs to know about the serving model."""

    model: str
    serving_since: float
    num_requests: int  # in flight, or waiting for a place in service
    last_active: float  # when a request for any model last began or ended
    arrivals_per_s: float = 0.0  # its requests a second while it was away; 0 if not known


@dataclass(frozen=True)
class SwitchRule:
    """The rule above for one configuration; durations in seconds."""

    num_models: int
    max_wait_s: float
    min_resident_s: float

    @property
    def switch_share_s(self) -> float:
        """How long one switch may take while `max_wait_s` holds; settings keep it above 0."""
        turns_s = (self.num_models - 1) * self.min_resident_s
        return (self.max_wait_s - turns_s) / self.num_models

    def wait_bound_s(self, longest_switch_s: float) -> float:
        """The longest possible wait for a model that does not serve."""
        excess_s = max(0.0, longest_switch_s - self.switch_share_s)
        return self.max_wait_s + self.num_models * excess_s

    def switch_at(self, serving: ServingModel, demands: Sequence[Demand], costs: Costs) -> float:
        """When to switch to the first of `demands`, if nothing changes. `demands` has at least one,
        the oldest first."""
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
        """When the waiting seconds reach the price. Each demand adds (t - begin) * weight: either
        all its requests have waited since `begin`, or they came evenly since, which is half of
        that."""
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
    """Seconds for the switches to each model of `demands` in turn, and back; None if unknown."""
    stops = (serving.model, *(demand.model for demand in demands), serving.model)
    legs = [costs.guess(old, new) for old, new in pairwise(stops)]
    return sum(leg for leg in legs if leg is not None) if None not in legs else None
