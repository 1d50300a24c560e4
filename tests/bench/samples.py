"""What was measured, by metric, subject and round, and what a statistician would say of it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """A sample's median, and the quartiles that half of it lies between."""

    n: int
    median: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """Quartiles are interpolated between the values, and never beyond them."""
    if len(values) == 1:
        return Summary(1, values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(len(values), median, low, high)


@dataclass
class Samples:
    """metric -> subject -> one list of values for each round it was measured in.

    A metric's name ends with its unit, and after an @ with what it was measured at.
    """

    rounds: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why it was not measured

    def add(self, metric: str, subject: str, values: Iterable[float]) -> None:
        """One more round's values."""
        if found := list(values):
            self.rounds.setdefault(metric, {}).setdefault(subject, []).append(found)

    def medians(self, metric: str, subject: str) -> list[float]:
        """The median of each round."""
        return [statistics.median(values) for values in self._of(metric, subject)]

    def summary(self, metric: str, subject: str) -> Summary | None:
        """Of the values of all rounds; None: it was not measured."""
        values = [value for values in self._of(metric, subject) for value in values]
        return summarize(values) if values else None

    def _of(self, metric: str, subject: str) -> list[list[float]]:
        return self.rounds.get(metric, {}).get(subject, [])
