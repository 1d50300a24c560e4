"""Decides when waiting requests cause a switch, from the rule and the learned traffic."""

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
    """Learns what switches cost and how often requests come, and asks the rule."""

    rule: SwitchRule
    costs: Costs = field(default_factory=Costs)
    _arrivals: Arrivals = field(default_factory=Arrivals)
    _closed_at: dict[str, float] = field(default_factory=dict)  # model -> it last ceased to admit

    def close(self, now: float, model: str) -> None:
        """`model` admits no more requests."""
        self._closed_at[model] = now

    def serve(self, now: float, model: str, gathered: Demand | None) -> None:
        """`model` serves; `gathered` are the requests that wait for it by now."""
        away_s = now - self._closed_at.get(model, now)
        if away_s > 0:
            self._arrivals.learn(model, gathered.num_requests if gathered else 0, away_s)

    def ranked(self, demands: Iterable[Demand]) -> list[Demand]:
        """The oldest demand first; a model's begins anew when it has ceased to admit."""
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
        """When to switch from the serving `model` to the first of `demands`, as `ranked`."""
        per_s = self._arrivals.per_s.get(model, 0.0)
        serving = ServingModel(model, serving_since, num_requests, last_active, per_s)
        return self.rule.switch_at(serving, demands, self.costs)
