"""When to leave the resident model for one that others wait for: pure functions and an average.

The rule, with M models, W = `max_wait_s` and R = `min_resident_s`:

(1) An idle resident is left at once; if it was busy a moment ago, after a short linger, because a
    client that sends one request after the other is between two of them. The linger is three of the
    pauses between its requests where these are dense: such a model is busy, and idle by chance.
(2) A busy one is left once the others' waiting is worth it: they have waited, since it began to
    serve, as many seconds in sum as its own requests would for a tour of the waiters' models and
    back, those that will come meanwhile among them (the rent has reached the price of the skis).
    Never before it has served R.
(3) Whatever it costs, it is left in time for everybody. Between a waiter and its model lie at most
    M switches: one under way, one to each model with an older claim, and one to its own. W gives
    each of them the share s = (W - (M - 1) R) / M, and each model in between its R. The model of
    rank j (0: next) is therefore owed a leave at claim + W - (j + 1) s - j R.

A claim begins when the oldest waiter came, or when the model was last put out if that is later:
models take turns, and a model with a long queue does not come first again and again.

The bound that follows: a wait for a model that does not serve ends, by its serving, within

    W + M * max(0, S - s)        S: the longest switch in it, from its preparation to serving

so within `max_wait_s` as long as no switch takes longer than its share. Proof: let the claim begin
at 0 with rank j <= M - 2. The model that serves, or is about to, does so from S at the latest, and
is left at the latest at max(S + R, W - (j + 1) s - j R). Each older claim takes S + R more, the own
switch S. Ranks only fall, as a later claim ranks behind. For S <= s the sum is at most W (with
j = M - 2 the two arms of the maximum are then equal), and a longer S adds M (S - s) at most.

A drain may take its whole timeout, so the worst S is `drain_timeout_s` + `cut_grace_s` + what the
switch costs. Not promised: a place in service once the model serves, where more wait than fit; and
nothing while an admin's switch, a lease or a failed load comes in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_OLD = 0.7  # weight of the past in an average: three switches make a change of disk or driver felt
# Measured with tests/pure/simulation.py: a linger makes a third as many switches a request for
# clients that send one after the other, halves their wait, and costs others its own length at most.
_LINGER_SHARE = 0.05  # of a tour
_LINGER_LIMIT_S = 1.5  # longer pauses are a person thinking, not a client's loop
# One in twenty pauses between independent requests is longer than three mean ones. To wait as long
# makes a seventh fewer switches beside a busy model, and the mean wait no longer (same simulation).
_NUM_PAUSES = 3
_DENSE_SHARE = 0.2  # of a tour, that so many pauses may take


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
class Claim:
    """The requests that wait for a model that does not serve."""

    model: str
    since: float  # the oldest one's arrival, or when the model was last put out if that is later
    num_requests: int


@dataclass(frozen=True)
class Resident:
    """The serving model, as the decision sees it."""

    model: str
    serving_since: float
    num_requests: int  # in flight, or waiting for a place in service
    last_active: float  # when a request for any model last began or ended
    arrivals_per_s: float = 0.0  # of its requests while it was away, as far as that is known


@dataclass(frozen=True)
class Rule:
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

    def leave_at(self, resident: Resident, claims: Sequence[Claim], costs: Costs) -> float:
        """When to switch to the first of `claims` (oldest first, not empty) if nothing changes."""
        earliest = resident.serving_since + self.min_resident_s
        owed_at = max(earliest, self._owed_at(claims))  # (3)
        tour_s = _tour_s(resident, claims, costs)
        if not resident.num_requests:
            return min(owed_at, _idle_at(resident, tour_s))  # (1)
        return min(owed_at, max(earliest, self._worth_at(resident, claims, tour_s)))  # (2)

    def _owed_at(self, claims: Sequence[Claim]) -> float:
        share_s, turn_s = self.switch_share_s, self.min_resident_s
        return min(
            claim.since + self.max_wait_s - (rank + 1) * share_s - rank * turn_s
            for rank, claim in enumerate(claims)
        )

    def _worth_at(self, resident: Resident, claims: Sequence[Claim], tour_s: float | None) -> float:
        """When the waiting seconds reach the price. Each claim adds (t - begin) * weight: its
        requests all waited since `begin`, or came evenly since, which is half of that."""
        if tour_s is None:
            return float("inf")  # no price is known: (3) decides
        total_weight, total_weighted_begin = 0.0, 0.0
        for claim in claims:
            has_waited_throughout = claim.since <= resident.serving_since
            weight = claim.num_requests if has_waited_throughout else (claim.num_requests + 1) / 2
            total_weight += weight
            total_weighted_begin += weight * max(claim.since, resident.serving_since)
        will_come = resident.arrivals_per_s * tour_s
        price = (resident.num_requests + will_come) * tour_s
        return (price + total_weighted_begin) / total_weight


def _idle_at(resident: Resident, tour_s: float | None) -> float:
    if resident.last_active < resident.serving_since or tour_s is None:
        return resident.serving_since
    linger_s = min(_LINGER_SHARE * tour_s, _LINGER_LIMIT_S)
    if resident.arrivals_per_s * _DENSE_SHARE * tour_s >= _NUM_PAUSES:
        linger_s = max(linger_s, _NUM_PAUSES / resident.arrivals_per_s)
    return resident.last_active + linger_s


def _tour_s(resident: Resident, claims: Sequence[Claim], costs: Costs) -> float | None:
    """What the switches to the models of `claims`, one after the other, and back would take."""
    stops = (resident.model, *(claim.model for claim in claims), resident.model)
    legs = [costs.guess(old, new) for old, new in pairwise(stops)]
    return sum(leg for leg in legs if leg is not None) if None not in legs else None
