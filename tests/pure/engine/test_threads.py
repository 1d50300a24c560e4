"""How many cores an engine on the CPU computes on."""

import os

import psutil
import pytest

from deployments.engine.args import engine_environment
from tests.specs import tiny

NAME = "OMP_NUM_THREADS"


@pytest.fixture
def machine(monkeypatch):
    """Sets the logical cores that may be used, and the physical ones that there are."""

    def set_cores(usable: int, physical: int | None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: usable if logical else physical)

    return set_cores


@pytest.mark.parametrize(
    ("usable", "physical", "threads"),
    [(2, 2, "1"), (1, 1, "1"), (16, 8, "7"), (4, 8, "3"), (4, None, "3")],
)
def test_one_core_is_left_to_whoever_feeds_it(machine, usable, physical, threads):
    machine(usable, physical)
    assert engine_environment(tiny(""), "cpu")[NAME] == threads


def test_models_file_may_say_otherwise(machine):
    machine(8, 8)
    spec = tiny("").model_copy(update={"env": {NAME: "8"}})
    assert engine_environment(spec, "cpu")[NAME] == "8"


def test_nothing_is_said_to_an_engine_on_a_card():
    assert NAME not in engine_environment(tiny(""), "cuda")
