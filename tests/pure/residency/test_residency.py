"""What the residency machine promises, one claim a test."""

import pickle

import pytest

from deployments.residency import (
    GOLDEN_MISMATCH,
    Cause,
    GatewayReport,
    Lease,
    LeaseHeld,
    Load,
    Phase,
    Prepare,
    Problem,
    State,
    TicketState,
    Unload,
    UnloadMode,
    events,
)
from deployments.residency.outlook import estimate_s, waits_for, would_switch
from tests.pure.residency.driver import BROKEN, REFUSAL, Driver

WRONG_ANSWER = Problem(GOLDEN_MISMATCH, "the answer is wrong")


def draining(in_flight: int = 1, drain_timeout_s: float = 60) -> Driver:
    """A server that drains `a` for a switch to `b`, with one gateway that has seen it."""
    driver = Driver().serving("a")
    driver.watch()
    driver.report(in_flight, admitting=True)
    driver.switch("b", drain_timeout_s=drain_timeout_s)
    driver.prepared()
    driver.report(in_flight)
    return driver


# --- the course of a switch ---


def test_start_loads_the_default_model():
    driver = Driver()
    driver.start("a")
    driver.prepared()
    assert driver.unanswered == [Load(1, "a")]
    driver.ready()
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "a")
    assert driver.machine.desired == "a"


def test_switch_goes_through_every_phase_in_order():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    driver.succeed()
    assert [phase for phase, _ in ticket.history] == [
        Phase.QUEUED,
        Phase.PREPARING,
        Phase.DRAINING,
        Phase.UNLOADING,
        Phase.LOADING,
        Phase.VERIFYING,
        Phase.READY,
    ]
    assert (ticket.source, ticket.target, ticket.state) == ("a", "b", TicketState.DONE)
    assert driver.machine.desired == "b"


def test_old_model_serves_while_the_switch_is_prepared():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    assert driver.unanswered == [Prepare(ticket.id, "b")]
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "a")


def test_switch_waits_for_requests_in_flight():
    driver = draining(in_flight=2)
    driver.report(1)
    assert driver.unanswered == []
    assert not driver.machine.is_cut
    driver.report(0)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_load_waits_until_the_old_engine_is_gone():
    driver = draining(in_flight=0)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]
    driver.sleep(1000)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]
    driver.unloaded()
    assert driver.unanswered == [Load(2, "b")]


def test_unload_leaves_the_place_empty_and_no_model_desired():
    driver = Driver().serving("a")
    ticket = driver.switch(None)
    driver.succeed()
    assert ticket.state is TicketState.DONE
    assert (driver.machine.state, driver.machine.desired) == (State.EMPTY, None)
    driver.sleep(1000)
    assert driver.unanswered == []


def test_unload_of_a_place_that_failed_ends_its_retries():
    driver = Driver()
    driver.start("a")
    driver.refused()
    assert driver.switch(None).state is TicketState.DONE
    driver.sleep(1000)
    assert driver.unanswered == []
    assert driver.machine.desired is None


def test_switch_to_the_resident_model_is_done_at_once():
    driver = Driver().serving("a")
    assert driver.switch("a").state is TicketState.DONE
    assert driver.unanswered == []


def test_cost_of_a_load_is_learnt():
    driver = Driver().serving("a")
    driver.switch("b")
    driver.prepared()
    driver.sleep(2)
    driver.unloaded()
    driver.sleep(30)
    driver.ready()
    assert driver.machine.costs.by_target["b"] == 32


# --- drain ---


def test_requests_are_cut_at_the_drain_deadline():
    driver = draining(drain_timeout_s=60)
    for _ in range(6):
        assert not driver.machine.is_cut
        driver.sleep(10)
        driver.report(1)
    assert driver.machine.is_cut
    assert driver.unanswered == []  # the gateway gets its time to cut
    driver.report(0)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_cut_requests_that_never_end_hold_the_switch_only_for_the_grace():
    driver = draining(drain_timeout_s=0)
    assert driver.machine.is_cut
    driver.sleep(4)
    assert driver.unanswered == []
    driver.sleep(1)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_cut_is_over_when_the_next_model_loads():
    driver = draining(drain_timeout_s=0)
    driver.report(0)
    driver.unloaded()
    assert not driver.machine.is_cut


def test_silent_gateway_does_not_block_a_drain():
    driver = draining()
    driver.sleep(14)
    assert driver.unanswered == []
    driver.sleep(1)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_watching_gateway_is_not_silent():
    driver = draining()
    for _ in range(5):
        driver.sleep(10)
        driver.watch()
    assert driver.unanswered == []


def test_new_gateway_that_has_not_reported_blocks_a_drain():
    driver = Driver().serving("a")
    driver.watch()
    driver.switch("b")
    driver.prepared()
    assert driver.unanswered == []
    driver.report(0)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_gateway_that_comes_back_during_a_drain_blocks_it_until_it_reports():
    driver = draining()
    driver.watch("returned")  # with requests from before it was silent
    driver.report(0)
    assert driver.unanswered == []
    driver.report(1, gateway="returned")
    assert driver.unanswered == []
    driver.report(0, gateway="returned")
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_gateway_that_does_not_know_yet_that_the_model_serves_blocks_its_drain():
    """It may learn so after the drain began, and admit."""
    driver = Driver()
    driver.watch()
    driver.report(0)
    driver.start("a")
    driver.prepared()
    driver.ready()
    driver.switch("b")
    driver.prepared()
    assert driver.unanswered == []
    driver.report(0)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


def test_report_from_before_the_gateway_knew_does_not_clear_it():
    driver = Driver().serving("a")
    driver.watch()
    driver.report(0, admitting=True)  # made under the view before
    driver.switch("b")
    driver.prepared()
    assert driver.unanswered == []


def test_report_crossing_the_news_of_serving_does_not_end_the_drain():
    driver = Driver()
    driver.watch()
    driver.start("a")
    driver.prepared()
    driver.ready()  # the gateway's watch is answered: the answer is on its way
    driver.switch("b")
    driver.prepared()
    driver.report(
        0, admitting=True, waiting={"a": 0}
    )  # made before the gateway knew that a model serves
    assert driver.unanswered == []  # it is about to learn, and to admit


def test_overtaken_report_is_ignored():
    driver = draining(in_flight=1)
    driver.report(0, seq=1)
    assert driver.unanswered == []


def test_requests_of_an_older_epoch_do_not_hold_a_drain():
    driver = draining(in_flight=0)
    driver.unloaded()
    driver.ready()
    driver.switch("c")
    driver.prepared()
    report = GatewayReport("gateway", 99, 2, {1: 3, 2: 0})  # three of epoch 1 never ended
    driver.handle(events.GatewayReported(driver.now, report))
    assert driver.unanswered == [Unload(2, "b", UnloadMode.SLEEP)]


# --- several requests for switches ---


def test_second_request_for_a_target_joins_the_running_switch():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    for step in (driver.prepared, driver.unloaded, driver.ready):
        assert driver.switch("b") is ticket
        step()
    assert ticket.state is TicketState.DONE
    assert driver.num_loads["b"] == 1


def test_switch_to_another_target_is_queued():
    driver = Driver().serving("a")
    first, second = driver.switch("b"), driver.switch("c")
    assert second.state is TicketState.QUEUED
    driver.succeed()
    assert (first.state, second.state) == (TicketState.DONE, TicketState.DONE)
    assert (second.source, driver.machine.holder) == ("b", "c")


def test_second_request_for_a_target_joins_the_queued_switch():
    driver = Driver().serving("a")
    driver.switch("b")
    assert driver.switch("c") is driver.switch("c")


def test_twenty_requests_for_three_targets_make_one_load_each():
    driver = Driver().serving("a")
    tickets = [driver.switch("abc"[n % 3]) for n in range(20)]
    driver.succeed()
    assert all(ticket.state is TicketState.DONE for ticket in tickets)
    assert driver.num_loads == {"a": 2, "b": 1, "c": 1}  # the first of a is the start


def test_joining_shortens_a_drain_and_never_lengthens_it():
    driver = draining(drain_timeout_s=60)
    driver.switch("b", drain_timeout_s=100)
    driver.switch("b", drain_timeout_s=3)
    driver.sleep(3)
    assert driver.machine.is_cut


def test_request_for_the_old_model_during_a_switch_loads_it_again_afterwards():
    driver = draining(in_flight=0)
    ticket = driver.switch("a")
    driver.succeed()
    assert ticket.state is TicketState.DONE
    assert driver.machine.holder == "a"


def test_request_for_a_target_that_just_failed_is_tried_again():
    driver = draining(in_flight=0)
    driver.unloaded()
    driver.load_failed()
    ticket = driver.switch("b")
    assert ticket.state is TicketState.QUEUED
    driver.succeed()
    assert ticket.state is TicketState.DONE
    assert driver.machine.holder == "b"


def test_request_for_a_start_that_just_failed_is_tried_again():
    driver = Driver()
    driver.start("a")
    driver.prepared()
    driver.load_failed()
    ticket = driver.switch("a")
    driver.succeed()
    assert ticket.state is TicketState.DONE


# --- failures ---


def test_refused_preparation_never_disturbs_the_old_model():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    driver.refused()
    assert (ticket.state, ticket.error) == (TicketState.FAILED, REFUSAL)
    assert (driver.machine.state, driver.machine.epoch) == (State.SERVING, 1)
    assert driver.unanswered == []


def test_failed_load_rolls_back_and_is_tried_once():
    driver = draining(in_flight=0)
    ticket = driver.machine.running
    assert ticket
    driver.unloaded()
    driver.load_failed()
    assert driver.unanswered == [Unload(2, "b", UnloadMode.STOP)]
    driver.succeed()
    assert (ticket.state, ticket.error) == (TicketState.ROLLED_BACK, BROKEN)
    assert driver.num_loads == {"a": 2, "b": 1, "c": 0}
    assert (driver.machine.holder, driver.machine.desired) == ("a", "a")
    assert driver.machine.failures["b"].problem == BROKEN


def test_wrong_golden_answer_earns_one_restart_then_rolls_back():
    driver = draining(in_flight=0)
    ticket = driver.machine.running
    assert ticket
    driver.unloaded()
    driver.load_failed(WRONG_ANSWER)
    driver.unloaded()
    assert driver.unanswered == [Load(3, "b")]
    driver.load_failed(WRONG_ANSWER)
    driver.succeed()
    assert (ticket.state, ticket.error) == (TicketState.ROLLED_BACK, WRONG_ANSWER)
    assert ticket.num_attempts == 2
    assert driver.machine.holder == "a"


def test_restart_after_a_wrong_golden_answer_may_succeed():
    driver = draining(in_flight=0)
    ticket = driver.machine.running
    assert ticket
    driver.unloaded()
    driver.load_failed(WRONG_ANSWER)
    driver.succeed()
    assert (ticket.state, ticket.error) == (TicketState.DONE, None)
    assert driver.machine.failures == {}


def test_rollback_failing_too_leaves_the_place_empty_and_is_retried_later():
    driver = draining(in_flight=0)
    ticket = driver.machine.running
    assert ticket
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    driver.load_failed(Problem("second", "the old one fails too"))
    driver.unloaded()
    assert (ticket.state, ticket.error) == (TicketState.FAILED, BROKEN)
    assert (driver.machine.state, driver.machine.desired) == (State.EMPTY, "a")
    driver.sleep(14.9)
    assert driver.unanswered == []
    driver.sleep(0.1)
    driver.succeed()
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "a")


def test_switch_to_a_third_model_works_after_a_failed_rollback():
    driver = draining(in_flight=0)
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    ticket = driver.switch("c")
    driver.succeed()
    assert (ticket.state, driver.machine.holder) == (TicketState.DONE, "c")
    driver.sleep(1000)
    assert driver.unanswered == []


def test_pause_between_retries_doubles_up_to_its_limit():
    driver = Driver()
    driver.start("a")
    pauses = []
    for _ in range(7):
        driver.refused()
        deadline = driver.machine.next_deadline(driver.now)
        assert deadline
        pauses.append(deadline - driver.now)
        driver.sleep(pauses[-1])
    assert pauses == [15, 30, 60, 120, 240, 300, 300]


def test_retries_go_on_for_weeks():
    """The pause once overflowed a float after some thousand retries: three and a half days."""
    driver = Driver()
    driver.start("a")
    for _ in range(5000):
        driver.refused()
        driver.sleep(300)
    driver.succeed()
    assert driver.machine.state is State.SERVING


def test_pause_starts_anew_once_an_engine_has_worked():
    driver = Driver()
    driver.start("a")
    for _ in range(5):
        driver.refused()
        driver.sleep(300)
    driver.succeed()
    driver.switch("b")
    driver.prepared()
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    driver.load_failed()
    driver.unloaded()
    assert driver.machine.next_deadline(driver.now) == driver.now + 15


def test_desired_survives_a_failed_switch_on_an_empty_place():
    """A request for a model that cannot load does not replace the desired model."""
    driver = Driver()
    driver.start("a")
    driver.refused()
    driver.switch("b", Cause.ADMIN)
    driver.prepared()
    driver.load_failed()
    driver.unloaded()
    assert driver.machine.desired == "a"
    driver.sleep(300)
    driver.succeed()
    assert driver.machine.holder == "a"


def test_switch_whose_requests_have_left_is_not_made():
    """The waiting request left while its switch was prepared: the old model never notices."""
    driver = Driver().serving("a")
    ticket = driver.switch("b", Cause.REQUEST)
    driver.prepared()
    assert ticket.error.code == "abandoned"
    assert (driver.machine.holder, driver.machine.state) == ("a", State.SERVING)


def test_switch_that_an_admin_joins_goes_on_when_its_requests_leave():
    driver = Driver().serving("a")
    ticket = driver.switch("b", Cause.REQUEST)
    assert driver.switch("b", Cause.ADMIN) is ticket
    driver.prepared()
    assert ticket.error is None
    assert ticket.phase is not Phase.FAILED


def test_desired_stays_while_a_switch_runs():
    driver = draining(in_flight=0)
    driver.unloaded()
    assert driver.machine.desired == "a"
    driver.ready()
    assert driver.machine.desired == "b"


# --- an engine's death ---


def test_engine_dying_within_probation_rolls_back():
    driver = draining(in_flight=0)
    ticket = driver.machine.running
    assert ticket
    driver.unloaded()
    driver.ready()
    assert ticket.state is TicketState.DONE
    driver.sleep(4.9)
    driver.engine_lost()
    assert ticket.state is TicketState.RUNNING
    driver.succeed()
    assert (ticket.state, ticket.error) == (TicketState.ROLLED_BACK, BROKEN)
    assert (driver.machine.holder, driver.machine.desired) == ("a", "a")
    assert driver.num_loads["b"] == 1


def test_restored_model_dying_at_once_is_restarted_not_rolled_back():
    driver = draining(in_flight=0)
    driver.unloaded()
    driver.load_failed()
    driver.succeed()
    driver.engine_lost()
    driver.succeed()
    assert driver.machine.holder == "a"


def test_first_model_dying_within_probation_is_retried_later():
    driver = Driver()
    driver.start("a")
    driver.succeed()
    driver.engine_lost()
    driver.unloaded()
    assert (driver.machine.state, driver.machine.desired) == (State.EMPTY, "a")
    driver.sleep(15)
    driver.succeed()
    assert driver.machine.holder == "a"


def test_later_death_restarts_the_same_model():
    driver = Driver().serving("a")
    driver.engine_lost()
    assert (driver.machine.state, driver.machine.desired) == (State.UNLOADING, "a")
    assert driver.machine.running
    assert driver.machine.running.cause is Cause.RECOVERY
    driver.succeed()
    assert (driver.machine.state, driver.machine.epoch) == (State.SERVING, 2)


def test_engine_lost_while_preparing_lets_the_switch_go_on():
    driver = Driver().serving("a")
    driver.watch()
    driver.report(3, admitting=True)
    ticket = driver.switch("b")
    driver.engine_lost()
    assert driver.machine.state is State.LOST
    driver.prepared()
    assert driver.unanswered == [Unload(1, "a", UnloadMode.STOP)]  # nothing to drain
    driver.succeed()
    assert (ticket.state, driver.machine.holder) == (TicketState.DONE, "b")


def test_engine_lost_while_preparing_comes_back_if_the_switch_is_refused():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    driver.engine_lost()
    driver.refused()
    assert ticket.state is TicketState.FAILED
    driver.succeed()
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "a")


def test_engine_lost_while_draining_is_unloaded_at_once():
    driver = draining(in_flight=5)
    driver.engine_lost()
    assert driver.unanswered == [Unload(1, "a", UnloadMode.STOP)]


def test_engine_lost_while_unloading_changes_nothing():
    driver = draining(in_flight=0)
    driver.engine_lost()
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]
    driver.succeed()
    assert driver.machine.holder == "b"


# --- epochs ---


def test_stale_epochs_finish_nothing():
    driver = draining(in_flight=0)
    machine = driver.machine
    driver.unloaded(0)
    assert machine.state is State.UNLOADING
    driver.unloaded()
    driver.verifying(1)
    driver.ready(1)
    driver.unloaded(1)
    driver.engine_lost(epoch=1)
    assert machine.state is State.LOADING
    driver.ready()
    driver.engine_lost(epoch=1)
    driver.unloaded(2)
    assert (machine.state, machine.holder) == (State.SERVING, "b")


def test_answers_for_a_finished_ticket_change_nothing():
    driver = Driver().serving("a")
    ticket = driver.switch("b")
    driver.succeed()
    driver.prepared(ticket.id)
    driver.refused(ticket_id=ticket.id)
    assert ticket.state is TicketState.DONE
    assert driver.machine.state is State.SERVING


def test_epoch_goes_on_from_the_saved_one():
    driver = Driver(epoch=41).serving("a")
    assert driver.machine.epoch == 42


# --- a restart of the Switchboard ---


def test_adopted_engine_serves_without_a_load():
    driver = Driver(epoch=7)
    driver.adopt("b", 7)
    assert (driver.machine.state, driver.machine.desired) == (State.SERVING, "b")
    assert driver.unanswered == []


def test_death_of_an_adopted_engine_of_an_older_epoch_is_noticed():
    """A load of epoch 8 was decided, and the engine of epoch 7 never left."""
    driver = Driver(epoch=8)
    driver.adopt("b", 7)
    driver.engine_lost(epoch=7)
    assert driver.unanswered == [Unload(7, "b", UnloadMode.STOP)]
    driver.unloaded()
    assert driver.unanswered == [Load(9, "b")]


def test_drain_after_a_restart_waits_for_gateways_not_yet_heard_of():
    driver = Driver(epoch=7)
    driver.adopt("b", 7)
    driver.switch("a")
    driver.prepared()
    assert driver.unanswered == []
    driver.watch()
    driver.report(1)
    driver.sleep(14)
    driver.report(1)
    driver.sleep(1)
    assert driver.unanswered == []
    driver.report(0)
    assert driver.unanswered == [Unload(7, "b", UnloadMode.SLEEP)]


def test_drain_after_a_restart_keeps_its_deadline():
    driver = Driver(epoch=7)
    driver.adopt("b", 7)
    driver.switch("a", drain_timeout_s=2)
    driver.prepared()
    driver.sleep(7)
    assert driver.unanswered == [Unload(7, "b", UnloadMode.SLEEP)]


# --- demand ---


def test_demand_switches_from_an_idle_model_at_once():
    driver = Driver().serving("a")
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 0})
    driver.prepared()
    driver.report(0, waiting={"b": 0})
    driver.succeed()
    assert driver.machine.holder == "b"


def test_demand_waits_while_the_resident_model_is_busy():
    driver = Driver(gateway_ttl_s=1000).serving("a")
    driver.machine.costs.learn("a", "b", 15)
    driver.machine.costs.learn("b", "a", 15)
    driver.watch()
    driver.report(1, admitting=True, waiting={"b": 0})
    driver.sleep(29.9)
    assert driver.unanswered == []
    driver.sleep(0.1)  # it has waited as long as the one request would for a switch and back
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_demand_does_not_wait_for_ever_where_a_switch_costs_much():
    driver = Driver(gateway_ttl_s=1000, max_wait_s=120, min_resident_s=10).serving("a")
    driver.machine.costs.learn("a", "b", 10_000)
    driver.watch()
    driver.report(1, admitting=True, waiting={"b": 0})
    driver.sleep(86)
    assert driver.unanswered == []
    driver.sleep(1)  # max_wait_s less one switch's share of it, (120 - 20) / 3
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_busy_model_just_loaded_stays_its_minimum():
    driver = Driver(gateway_ttl_s=1000)
    driver.start("a")
    driver.succeed()
    driver.watch()
    driver.report(1, admitting=True, waiting={"b": 100})
    driver.sleep(9.9)
    assert driver.unanswered == []
    driver.sleep(0.1)
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_demand_takes_the_longest_waiting_model_first():
    driver = Driver().serving("a")
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 1, "c": 2})
    [effect] = driver.unanswered
    assert isinstance(effect, Prepare)
    assert effect.model == "c"


def test_models_take_turns_although_one_has_the_older_waiters():
    """A request for `a` waits since before the others came: `a` was full, and has had its turn."""
    driver = Driver(gateway_ttl_s=1000).serving("a")
    driver.watch()
    waiting = {"a": 300.0, "b": 60.0, "c": 50.0}
    driver.report(1, admitting=True, waiting=waiting)
    driver.succeed()
    assert driver.machine.holder == "b"
    driver.sleep(10)
    driver.report(0, admitting=True, waiting={"a": 310, "c": 60})
    driver.succeed()
    assert driver.machine.holder == "c"


def test_demand_fills_an_empty_place():
    driver = Driver()
    driver.watch()
    driver.report(0, waiting={"b": 0})
    driver.succeed()
    assert driver.machine.holder == "b"


def test_demand_does_not_retry_a_failed_model_before_its_cooldown():
    driver = Driver(gateway_ttl_s=1000).serving("a")
    driver.switch("b")
    driver.refused()
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 0})
    driver.sleep(14.9)
    assert driver.unanswered == []
    driver.sleep(0.1)
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_admin_may_try_a_failed_model_during_its_cooldown():
    driver = Driver().serving("a")
    driver.switch("b")
    driver.refused()
    ticket = driver.switch("b")
    driver.succeed()
    assert ticket.state is TicketState.DONE
    assert "b" not in driver.machine.failures


def test_demand_of_a_gateway_that_is_gone_is_forgotten():
    driver = Driver().serving("a")
    driver.switch("b")
    driver.refused()
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 0})
    driver.sleep(15)
    assert driver.unanswered == []
    assert driver.machine.gateways.waiting() == {}


def test_waiting_is_summed_over_gateways():
    driver = Driver().serving("a")
    driver.switch("b")
    driver.report(0, waiting={"c": 1}, gateway="one")
    driver.report(0, waiting={"c": 3, "a": 0}, gateway="two")
    waiting = driver.machine.gateways.waiting()
    assert waiting["c"].num_requests == 2
    assert waiting["c"].since == driver.now - 3
    assert waiting["a"].num_requests == 1


# --- leases ---


def test_lease_of_the_resident_model_counts_from_now():
    driver = Driver().serving("a")
    assert driver.lease("a", seconds=60).state is TicketState.DONE
    assert driver.machine.held == Lease("a", "me", 60, driver.now + 60)


def test_lease_loads_its_model_and_counts_from_when_it_serves():
    driver = Driver().serving("a")
    ticket = driver.lease("b", seconds=60)
    assert (ticket.cause, ticket.target) == (Cause.LEASE, "b")
    driver.prepared()
    driver.unloaded()
    driver.sleep(500)
    assert driver.machine.held == Lease("b", "me", 60, None)
    driver.ready()
    assert driver.machine.held == Lease("b", "me", 60, driver.now + 60)


def test_demand_waits_while_a_lease_stands():
    driver = Driver(gateway_ttl_s=1000).serving("a")
    driver.lease("a", seconds=500)
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 100})
    driver.sleep(499)
    assert driver.unanswered == []
    driver.sleep(1)
    assert driver.machine.held is None
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_end_of_a_lease_lets_demand_in():
    driver = Driver().serving("a")
    driver.lease("a")
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 0})
    assert driver.unanswered == []
    driver.end_lease()
    assert [type(effect) for effect in driver.unanswered] == [Prepare]


def test_lease_stops_a_switch_for_requests_that_is_only_prepared():
    driver = Driver().serving("a")
    driver.watch()
    driver.report(0, admitting=True, waiting={"b": 0})
    running = driver.machine.running
    assert running
    driver.lease("a")
    driver.prepared()
    assert running.error
    assert running.error.code == "abandoned"
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "a")
    assert driver.machine.held
    assert driver.machine.held.until == driver.now + 60


def test_lease_joins_a_running_switch_to_its_model():
    driver = draining()
    ticket = driver.lease("b")
    assert ticket is driver.machine.running
    driver.report(0)
    driver.succeed()
    assert driver.num_loads["b"] == 1
    assert driver.machine.held
    assert driver.machine.held.until == driver.now + 60


def test_switch_that_a_lease_joins_goes_on_when_its_requests_leave():
    driver = Driver().serving("a")
    ticket = driver.switch("b", Cause.REQUEST)
    assert driver.lease("b") is ticket
    driver.prepared()
    assert ticket.error is None


def test_lease_comes_after_earlier_requests_and_then_stays():
    driver = Driver().serving("a")
    driver.switch("b")
    driver.switch("c")
    driver.lease("b")
    driver.succeed()
    assert driver.machine.holder == "b"
    assert driver.machine.held
    assert driver.machine.held.until is not None
    assert driver.num_loads["c"] == 1


def test_second_lease_is_refused_with_the_first():
    driver = Driver().serving("a")
    driver.lease("a", owner="me")
    with pytest.raises(LeaseHeld) as caught:
        driver.lease("b", owner="you")
    assert caught.value.lease == driver.machine.held
    assert driver.unanswered == []


def test_lease_held_survives_pickling():
    error = LeaseHeld(Lease("a", "me", 60))
    assert pickle.loads(pickle.dumps(error)).lease == error.lease  # noqa: S301  our own bytes


def test_lease_may_be_renewed_by_its_owner_and_taken_over_once_it_is_ended():
    driver = Driver().serving("a")
    driver.lease("a", seconds=60)
    driver.sleep(30)
    driver.lease("a", seconds=60)
    assert driver.machine.held == Lease("a", "me", 60, driver.now + 60)
    driver.end_lease()
    driver.lease("b", owner="you")
    driver.succeed()
    assert driver.machine.holder == "b"
    assert driver.machine.held
    assert driver.machine.held.owner == "you"


def test_lease_that_has_run_out_does_not_refuse_another():
    driver = Driver().serving("a")
    driver.lease("a", seconds=60)
    driver.now += 60  # the tick is late
    driver.lease("b", owner="you")
    assert driver.machine.held
    assert driver.machine.held.owner == "you"


def test_admin_overrides_a_lease():
    driver = Driver().serving("a")
    driver.lease("a")
    driver.switch("b")
    assert driver.machine.held is None
    driver.succeed()
    assert driver.machine.holder == "b"


def test_admin_who_wants_the_leased_model_leaves_the_lease():
    driver = Driver().serving("a")
    driver.lease("a")
    driver.switch("a")
    assert driver.machine.held


def test_switch_for_a_lease_that_has_ended_is_not_made():
    driver = Driver().serving("a")
    ticket = driver.lease("b")
    driver.end_lease()
    driver.prepared()
    assert ticket.state is TicketState.FAILED
    assert driver.machine.holder == "a"


def test_failed_load_ends_the_lease():
    driver = Driver().serving("a")
    driver.lease("b")
    driver.prepared()
    driver.unloaded()
    driver.load_failed()
    assert driver.machine.held is None
    driver.succeed()
    assert driver.machine.holder == "a"


def test_refused_preparation_ends_the_lease():
    driver = Driver().serving("a")
    driver.lease("b")
    driver.refused()
    assert driver.machine.held is None


def test_wrong_golden_answer_that_earns_a_restart_keeps_the_lease():
    driver = Driver().serving("a")
    driver.lease("b")
    driver.prepared()
    driver.unloaded()
    driver.load_failed(WRONG_ANSWER)
    driver.succeed()
    assert driver.machine.held == Lease("b", "me", 60, driver.now + 60)


def test_lease_survives_the_engines_death():
    driver = Driver(gateway_ttl_s=1000).serving("a")
    driver.lease("a", seconds=500)
    driver.engine_lost()
    driver.watch()
    driver.report(0, waiting={"b": 100})
    driver.succeed()
    driver.report(0, admitting=True, waiting={"b": 100})
    assert driver.machine.holder == "a"
    assert driver.machine.held
    assert driver.machine.held.until == driver.now + 500


# --- idleness ---


def idle_driver() -> Driver:
    driver = Driver(idle_unload_s={"a": 300.0}, gateway_ttl_s=10_000).serving("a")
    driver.watch()
    return driver


def test_idle_model_is_unloaded_and_stays_so():
    driver = idle_driver()
    driver.report(0, admitting=True, idle_s=0)
    driver.sleep(300)
    driver.report(0, admitting=True, idle_s=300)
    driver.report(0)
    assert driver.machine.running
    assert driver.machine.running.cause is Cause.IDLE
    driver.succeed()
    assert (driver.machine.state, driver.machine.desired) == (State.EMPTY, None)
    driver.sleep(1000)
    assert driver.unanswered == []


def test_idle_model_is_unloaded_without_any_gateway():
    driver = Driver(idle_unload_s={"a": 300.0})
    driver.start("a")
    driver.succeed()
    driver.sleep(299)
    assert driver.unanswered == []
    driver.sleep(1)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.STOP_ALL)]


def test_silence_of_a_gateway_is_no_idleness():
    driver = idle_driver()
    driver.report(0, admitting=True, idle_s=0)
    driver.sleep(1000)
    assert driver.unanswered == []
    driver.report(0, admitting=True, idle_s=200)
    assert driver.unanswered == []
    driver.sleep(100)
    driver.report(0, admitting=True, idle_s=300)
    assert driver.machine.state is State.DRAINING


def test_used_awaited_or_leased_model_is_not_idle():
    driver = idle_driver()
    driver.sleep(1000)
    driver.report(1, admitting=True, idle_s=900)
    driver.report(0, admitting=True, idle_s=900, waiting={"a": 0})
    driver.lease("a", seconds=60)
    driver.report(0, admitting=True, idle_s=900)
    driver.sleep(59)
    driver.report(0, admitting=True, idle_s=959)
    assert driver.machine.state is State.SERVING


def test_model_without_an_idle_time_stays():
    driver = Driver(idle_unload_s={"b": 1.0}).serving("a")
    driver.sleep(10_000)
    assert driver.unanswered == []


# --- reports about a switch ---


def learnt() -> Driver:
    """Serves `a`; a -> b was measured as 12 s, b -> a as 7."""
    driver = Driver().serving("a")
    for target, seconds in [("b", 12), ("a", 7)]:
        driver.switch(target)
        driver.prepared()
        driver.sleep(seconds)
        driver.unloaded()
        driver.ready()
    return driver


def test_estimate_is_what_the_pair_cost():
    driver = learnt()
    assert estimate_s(driver.machine, "b") == 12
    assert estimate_s(driver.machine, "a") == 0
    assert estimate_s(driver.machine, "c") is None
    ticket = driver.switch("b")
    assert ticket.estimate_s == 12
    assert estimate_s(driver.machine, "b") == 12
    assert estimate_s(driver.machine, "a") == 12 + 7


def test_draining_switch_says_what_it_waits_for():
    driver = draining(in_flight=3)
    assert waits_for(driver.machine) == {"in_flight": 3}
    driver.watch("another")
    assert waits_for(driver.machine) == {"in_flight": 3, "gateways": 1}
    report = GatewayReport("another", 1, 1)
    driver.handle(events.GatewayReported(driver.now, report))
    driver.report(0)
    assert waits_for(driver.machine) == {}


def test_dry_run_says_what_a_switch_would_meet_and_changes_nothing():
    driver = learnt()
    driver.report(2, admitting=True)
    driver.lease("a")
    before = driver.machine.held
    assert would_switch(driver.machine, "b") == {
        "from": "a",
        "to": "b",
        "in_flight": 2,
        "queued_behind": 0,
        "estimate_s": 12,
        "blockers": [{"kind": "lease", "model": "a", "owner": "me"}],
    }
    assert driver.machine.held is before
    assert driver.unanswered == []


def test_dry_run_names_the_running_switch():
    driver = learnt()
    ticket = driver.switch("b")
    driver.switch("c")
    plan = would_switch(driver.machine, "a")
    assert plan["blockers"] == [{"kind": "switch", "ticket": ticket.id, "to": "b"}]
    assert plan["queued_behind"] == 2
    assert would_switch(driver.machine, "c")["queued_behind"] == 1
    assert would_switch(driver.machine, "b")["blockers"] == []


# --- deadlines ---


def test_deadline_is_always_in_the_future_and_ticking_at_it_makes_progress():
    driver = draining()
    deadlines = []
    while (deadline := driver.machine.next_deadline(driver.now)) is not None:
        assert deadline > driver.now
        deadlines.append(deadline - 1000)
        driver.now = deadline
        driver.tick()
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]
    assert len(deadlines) <= 2


@pytest.mark.parametrize("offset", [0.1, 1 / 3, 1e9 / 7])
def test_gateway_deadline_is_not_lost_to_rounding(offset):
    driver = draining()
    driver.sleep(offset)
    driver.report(1)
    driver.sleep(15)
    assert driver.unanswered == [Unload(1, "a", UnloadMode.SLEEP)]


# --- what never answers ---


def test_disk_that_hangs_as_a_switch_is_prepared_holds_up_no_other():
    """The old model never notices, and an answer that comes later is not heard."""
    driver = Driver(load_timeout_s=600).serving("a")
    stuck = driver.switch("b")
    late = driver._take(Prepare)
    following = driver.switch("c")
    driver.sleep(599)
    assert stuck.phase is Phase.PREPARING
    driver.sleep(1)
    assert stuck.state is TicketState.FAILED
    assert stuck.error is not None
    assert stuck.error.code == "prepare_timeout"
    assert following.phase is Phase.PREPARING
    driver.prepared(late.ticket_id)
    assert driver.machine.holder == "a"
    driver.succeed()
    assert following.state is TicketState.DONE


@pytest.mark.parametrize("is_verifying", [False, True])
def test_load_that_never_answers_is_rolled_back(is_verifying: bool):
    driver = Driver(load_timeout_s=600).serving("a")
    ticket = driver.switch("b")
    driver.prepared()
    driver.sleep(60)
    driver.unloaded()
    if is_verifying:
        driver.verifying(driver.machine.epoch)
    driver._take(Load)
    driver.sleep(600)
    assert driver.unanswered == [Unload(2, "b", UnloadMode.STOP)]
    driver.succeed()
    assert ticket.state is TicketState.ROLLED_BACK
    assert ticket.error is not None
    assert ticket.error.code == "load_timeout"
    assert driver.machine.holder == "a"


def test_switch_that_is_answered_leaves_no_deadline():
    driver = Driver(load_timeout_s=600).serving("a")
    driver.switch("b")
    driver.succeed()
    driver.sleep(10_000)
    assert (driver.machine.state, driver.machine.holder) == (State.SERVING, "b")
