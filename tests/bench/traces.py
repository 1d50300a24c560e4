"""Switches that the scheduler and first-come-first-served make, in simulated time."""

import random

from tests.bench.samples import Samples
from tests.bench.targets import FIFO, OURS
from tests.pure.simulation import TRACES, Simulation

NAMES = [make(random.Random(1)).name for make in TRACES]
_SEEDS = (1, 2, 3)


def measure(samples: Samples) -> None:
    """Switches a request: how many requests come depends, in some traces, on how they are served.

    Each seed is a round. Raises AssertionError: somebody waited longer than is promised.
    """
    for make in TRACES:
        for seed in _SEEDS:
            for subject in (OURS, FIFO):
                simulation = Simulation(make(random.Random(seed)), subject == FIFO)
                outcome = simulation.run()
                metric = f"switches@{simulation.trace.name}"
                samples.add(metric, subject, [outcome.thrash_ratio])
            check = Simulation(make(random.Random(seed)), max_in_service=10_000)
            bound = check.run()
            assert bound.max_s <= check.machine.wait_bound_s(bound.longest_switch_s)
