"""What grew in a run: judged by medians, so that one sample decides nothing.

A series is a list of (seconds, value). What is compared are the medians of its first and of its
last quarter; what may lie between them is an allowance: so much whatever the time, for what fills
up once, and so much an hour.
"""

from dataclasses import dataclass
from statistics import median

Series = list[tuple[float, float]]

_MIN_SAMPLES = 8  # two a quarter
_LEVEL = 3  # samples whose median is the level at which a life begins or ends


@dataclass(frozen=True)
class Allowance:
    once: float
    per_hour: float


@dataclass(frozen=True)
class Growth:
    """One thing that was measured all the while."""

    name: str
    first: float
    last: float
    allowed: float

    @property
    def is_too_much(self) -> bool:
        return self.last - self.first > self.allowed


def judge(name: str, series: Series, allowance: Allowance) -> Growth | None:
    """None where there are too few samples to tell."""
    if len(series) < _MIN_SAMPLES:
        return None
    quarter = len(series) // 4
    first, last = series[:quarter], series[-quarter:]
    hours = (median(at for at, _ in last) - median(at for at, _ in first)) / 3600
    return Growth(
        name,
        median(value for _, value in first),
        median(value for _, value in last),
        allowance.once + allowance.per_hour * hours,
    )


def stitched(lives: list[Series], settle_s: float) -> Series:
    """One series of several processes that came one after the other: only what each grew by.

    A process that is killed takes its growth with it, so the next one goes on at the level where
    the last one ended. The first `settle_s` of each life do not count: it fills up.
    """
    whole: Series = []
    for life in lives:
        settled = [(at, value) for at, value in life if at - life[0][0] >= settle_s]
        if len(settled) < _LEVEL:
            continue
        begins_at = median(value for _, value in settled[:_LEVEL])
        level = median(value for _, value in whole[-_LEVEL:]) if whole else begins_at
        whole += [(at, value - begins_at + level) for at, value in settled]
    return whole
