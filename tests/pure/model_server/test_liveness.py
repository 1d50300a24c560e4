"""Slow engines live and dead ones are found: histories of what is seen of an engine."""

from collections.abc import Iterable

import pytest

from deployments.model_server.liveness import Judge, Look

STILL_S, STUCK_S, STEP_S = 30.0, 600.0, 15.0
IDLE_S = 0.02  # what the helper threads of a blocked engine do between two looks


def course(
    looks: Iterable[tuple[tuple[float, ...] | None, bool, float, float]], step_s: float = STEP_S
) -> tuple[str, float] | None:
    """The first problem's code, and when it is found; each look: counts, owing, server, core."""
    judge = Judge(STILL_S, STUCK_S)
    for number, (counts, is_owing, server_s, core_s) in enumerate(looks):
        look = Look(number * step_s, counts, is_owing, server_s, core_s)
        if problem := judge.problem(look):
            return problem.code, look.at
    return None


def test_idle_engine_lives():
    assert course([((0.0, 9.0), False, IDLE_S, IDLE_S)] * 1000) is None


def test_long_step_of_a_prompt_lives():
    """Its gauges say that nothing runs; the open question makes it owe an answer."""
    assert course([((0.0,), True, IDLE_S, STEP_S)] * 39) is None


def test_starved_engine_lives():
    """Others have the cores: it waits for one nearly all the time, and does not even answer its
    metrics for minutes, then makes a step."""
    silent = [(None, True, 2.0, STEP_S)] * 30
    assert (
        course([((1.0, 5.0), True, 2.0, STEP_S), *silent, ((1.0, 6.0), True, 2.0, STEP_S)] * 5)
        is None
    )


def test_starved_api_server_that_has_not_handed_its_request_on_lives():
    assert course([((1.0, 5.0), True, STEP_S, IDLE_S)] * 30) is None


def test_looks_that_come_late_themselves_end_no_working_engine():
    assert course([((1.0,), True, 20.0, 400.0)] * 2, step_s=400) is None


@pytest.mark.parametrize("before", [0, 1, 60])
def test_stopped_or_deadlocked_core_is_found_soon(before: int):
    """However long it worked before."""
    working = [((1.0, float(n)), True, 1.0, STEP_S) for n in range(before)]
    found = course([*working, *[((1.0, -1.0), True, 1.0, IDLE_S)] * 10])
    assert found is not None
    assert found[0] == "engine_stuck"
    assert found[1] - before * STEP_S <= STILL_S


def test_core_that_works_on_a_step_and_then_blocks_is_found_soon():
    found = course([*[((1.0,), True, 1.0, STEP_S)] * 20, *[((1.0,), True, 1.0, IDLE_S)] * 10])
    assert found == ("engine_stuck", 19 * STEP_S + STILL_S)


def test_mute_api_server_is_found_soon():
    """Stopped, or blocked: whether its core works or not."""
    for core_s in (IDLE_S, STEP_S):
        told = ((0.0,), False, 1.0, IDLE_S)
        assert course([told, *[(None, True, 0.0, core_s)] * 10]) == ("engine_mute", STILL_S)


def test_endless_loop_is_found_in_the_end():
    assert course([((1.0,), True, 1.0, STEP_S)] * 100) == ("engine_stuck", STUCK_S)
    assert course([((1.0,), True, 1.0, 1.0), *[(None, True, STEP_S, 0)] * 100]) == (
        "engine_stuck",
        STUCK_S,
    )


def test_idle_time_is_not_counted_as_standing_still():
    idle = [((0.0,), False, IDLE_S, IDLE_S)] * 100
    assert course([*idle, ((1.0,), True, 1.0, STEP_S)]) is None
