"""A load that failed is started once more where that may help, and only there."""

from deployments.model_server.attempts import LoadAttempts
from deployments.residency import Problem

ENDED = Problem("engine_ended", "the engine of qwen-14b ended: torch.OutOfMemoryError: …")
FORK = Problem("engine_ended", "RuntimeError: Cannot re-initialize CUDA in forked subprocess.")


def attempts(**changes: bool) -> LoadAttempts:
    return LoadAttempts(**{"is_gpu": True, "is_first_load": False, "by_standby": True} | changes)


def test_first_load_that_failed_is_started_once_more():
    """It compiled, which takes memory; the second finds the kernels."""
    load = attempts(is_first_load=True, by_standby=False)
    assert load.may_try_again(ENDED, was_forked=False)
    assert not load.may_try_again(ENDED, was_forked=False)
    assert load.blamed_on_fork is None


def test_later_load_that_failed_by_a_plain_start_is_not_started_again():
    assert not attempts(by_standby=False).may_try_again(ENDED, was_forked=False)


def test_forked_engine_that_failed_is_followed_by_a_plain_start():
    load = attempts()
    assert load.may_try_again(ENDED, was_forked=True)
    assert not load.by_standby
    assert load.blamed_on_fork == ENDED.message


def test_first_load_is_no_proof_against_forking_unless_it_says_so():
    load = attempts(is_first_load=True)
    assert load.may_try_again(ENDED, was_forked=True)
    assert load.blamed_on_fork is None
    load = attempts(is_first_load=True)
    assert load.may_try_again(FORK, was_forked=True)
    assert load.blamed_on_fork == FORK.message


def test_engine_without_a_gpu_is_not_started_again():
    assert not attempts(is_gpu=False, is_first_load=True).may_try_again(ENDED, was_forked=True)


def test_load_that_ran_out_of_time_is_not_started_again():
    late = Problem("load_timeout", "qwen-14b was not ready in 600 s")
    assert not attempts(is_first_load=True).may_try_again(late, was_forked=True)
