"""Switches that the scheduler and first-come-first-served make, in simulated time.

That nobody waits past the promised bound on the same traces is a test: `test_switch_rule.py`.
"""

import random

from tests.bench.samples import Samples
from tests.bench.targets import FIFO, OURS
from tests.pure.residency.simulation import TRACES, Simulation

NAMES = [make(random.Random(1)).name for make in TRACES]


def measure(samples: Samples, num_seeds: int) -> None:
    """Switches a request: how many requests come depends, in some traces, on how they are served.

    Each seed is a round.
    """
    for make in TRACES:
        for seed in range(1, num_seeds + 1):
            for subject in (OURS, FIFO):
                simulation = Simulation(make(random.Random(seed)), subject == FIFO)
                ratio = simulation.run().thrash_ratio
                samples.add(f"switches@{simulation.trace.name}", subject, [ratio])
