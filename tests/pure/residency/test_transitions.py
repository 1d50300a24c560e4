"""The transition table in the residency machine's docstring is exact.

Every test that plays a `Driver`, and every history of `test_machine.py`, fails where the machine
does something that is not in the table. Here each row of the table is seen to happen.
"""

import pytest

from deployments.residency import State, events
from tests.pure.residency.driver import REFUSAL, Driver
from tests.pure.residency.transitions import TABLE, explain


def start_and_switch() -> Driver:
    """A load with its known question, a switch away from a busy model, an unload, a lost load."""
    driver = Driver()
    driver.start("a")
    driver.succeed()
    driver.watch()
    driver.report(1, admitting=True)
    driver.switch("b", drain_timeout_s=3)
    driver.prepared()
    driver.sleep(driver.machine.policy.cut_grace_s + 3)
    driver.succeed()
    driver.report(1, admitting=True)
    driver.switch(None, drain_timeout_s=3)
    driver.sleep(driver.machine.policy.cut_grace_s + 3)
    driver.succeed()
    assert driver.machine.state is State.EMPTY
    driver.report(waiting={"a": 1})
    driver.prepared()
    driver.ready()  # without its known question
    return driver


def switch_for_requests() -> Driver:
    """Time alone begins these: a switch to a model that requests wait for, and an idle unload."""
    driver = Driver(idle_unload_s={"b": 1.0}, gateway_ttl_s=1000).serving("a")
    driver.watch()
    driver.report(1, admitting=True, waiting={"b": 1})
    driver.sleep(200)
    driver.report(0)
    driver.succeed()
    driver.watch("another")
    driver.report(1, gateway="another", admitting=True)
    driver.report(0, gateway="another", admitting=True)
    driver.report(1, admitting=True)
    driver.report(0, admitting=True)
    driver.sleep(20)
    return driver


def adopt() -> Driver:
    driver = Driver(epoch=3)
    driver.adopt("a", 3)
    return driver


def engine_dies() -> Driver:
    """As it serves, drains, loads and verifies; and a load's wrong answer."""
    driver = Driver().serving("a")
    driver.engine_lost()
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    driver.sleep(driver.machine.policy.failed_retry_s)
    driver.prepared()
    driver.verifying(driver.machine.epoch)
    driver.load_failed()
    driver.unloaded()
    driver.sleep(400)
    driver.succeed()
    driver.watch()
    driver.report(1, admitting=True)
    driver.switch("b")
    driver.prepared()
    driver.engine_lost()
    return driver


def engine_dies_while_a_switch_prepares(answer: str) -> Driver:
    driver = Driver().serving("a")
    driver.switch("b")
    driver.engine_lost()
    if answer == "prepared":
        driver.prepared()
    elif answer == "refused":
        driver.refused(REFUSAL)
    else:
        driver.sleep(driver.machine.policy.load_timeout_s)
    return driver


def load_is_late(verifies: bool) -> Driver:
    driver = Driver()
    driver.start("a")
    driver.prepared()
    if verifies:
        driver.verifying(driver.machine.epoch)
    driver.sleep(driver.machine.policy.load_timeout_s)
    return driver


def test_each_row_of_the_table_happens():
    drivers = [
        start_and_switch(),
        switch_for_requests(),
        adopt(),
        engine_dies(),
        *(engine_dies_while_a_switch_prepares(how) for how in ("prepared", "refused", "late")),
        load_is_late(verifies=False),
        load_is_late(verifies=True),
    ]
    observed = set[object]().union(*(driver.observed for driver in drivers))
    assert [row for row in TABLE if row not in observed] == []


def test_table_has_each_row_once():
    assert len(TABLE) == 23
    assert len(set(TABLE)) == len(TABLE)


def test_what_is_not_in_the_table_is_found():
    assert (
        explain(State.SERVING, events.EngineReady(1.0, 1, "/run/a.sock"), State.SERVING, []) == ()
    )
    with pytest.raises(AssertionError, match="not in the table"):
        explain(State.EMPTY, events.EngineReady(1.0, 1, "/run/a.sock"), State.SERVING, [])
    with pytest.raises(AssertionError, match="not in the table"):
        explain(State.UNLOADING, events.EngineUnloaded(1.0, 1), State.LOADING, [])
