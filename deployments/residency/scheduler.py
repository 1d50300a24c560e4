"""Decides when waiting requests cause a switch, by the rule and the traffic so far."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from deployments.residency.switch_rule import (
    Arrivals,
    Costs,
    Demand,
    ServingModel,
    SwitchRule,
)


@dataclass
class Scheduler:
    """Records what switches cost and how often requests come, and applies the rule to them."""

    rule: SwitchRule
    costs: Costs = field(default_factory=Costs)
    _arrivals: Arrivals = field(default_factory=Arrivals)
    _closed_at: dict[str, float] = field(
        default_factory=dict
    )  # model -> when it last stopped admitting

    def close(self, now: float, model: str) -> None:
        """Note that `model` stops admitting requests."""
        self._closed_at[model] = now

    def serve(self, now: float, model: str, gathered: Demand | None) -> None:
        """Note that `model` begins to serve; `gathered` are the requests that wait for it."""
        away_s = now - self._closed_at.get(model, now)
        if away_s > 0:
            self._arrivals.learn(model, gathered.num_requests if gathered else 0, away_s)

    def ranked(self, demands: Iterable[Demand]) -> list[Demand]:
        """Sort by age, the oldest first. A demand begins anew when its model stops admitting."""
        turns = [
            replace(demand, since=max(demand.since, self._closed_at.get(demand.model, -math.inf)))
            for demand in demands
        ]
        return sorted(turns, key=lambda demand: (demand.since, demand.model))

    def switch_at(
        self,
        model: str,
        serving_since: float,
        num_requests: int,
        last_active: float,
        demands: list[Demand],
    ) -> float:
        """When to switch from the serving `model` to the first of `demands`, which are `ranked`."""
        per_s = self._arrivals.per_s.get(model, 0.0)
        serving = ServingModel(model, serving_since, num_requests, last_active, per_s)
        return self.rule.switch_at(serving, demands, self.costs)
