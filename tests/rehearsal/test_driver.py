"""Everything that asks the NVIDIA driver, against a stub of its library that a test changes while
they run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.server import wait_until
from tests.rehearsal.driver import (
    DESKTOP,
    DRIVER_NOT_LOADED,
    ENGINE,
    GPU_IS_LOST,
    VERSION_MISMATCH,
    Card,
    DriverStub,
    blender,
)
from tests.rehearsal.place import UTILIZATION, gpu_place_config
from tests.rehearsal.programs import Program

MIB = 2**20
STUDIO = Card(processes=DESKTOP)
Start = Callable[..., Program]

pytestmark = pytest.mark.timeout(60)


# --- the reader ---


def test_card_is_read_while_programs_come_and_go(driver: DriverStub, start: Start) -> None:
    reader = start("reader")
    idle = reader.ask()
    assert (idle["name"], idle["driver"]) == ("NVIDIA GeForce RTX 5080", "580.95.05")
    assert (idle["capability"], idle["cuda"]) == ([12, 0], [13, 0])
    assert (idle["total_bytes"], idle["free_bytes"]) == (16_303 * MIB, 15_842 * MIB)
    driver.write(STUDIO.beside(blender(9_000)))
    busy = reader.ask()
    assert busy["free_bytes"] == idle["free_bytes"] - (9_000 + 420 + 310) * MIB
    assert [p["name"] for p in busy["processes"]] == ["blender", "Xorg", "firefox"]
    assert busy["processes"][0]["used_bytes"] == 9_000 * MIB
    driver.write(Card())
    assert reader.ask() == idle


def test_wsl2_tells_the_memory_and_nobody_who_holds_it(driver: DriverStub, start: Start) -> None:
    driver.write(STUDIO.beside(blender(9_000)), is_wsl2=True)
    reading = start("reader").ask()
    assert reading["used_bytes"] == (461 + 9_730) * MIB
    assert reading["processes"] == []
    assert reading["utilization_percent"] is None
    assert reading["problem"] is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GPU_IS_LOST, "GPU is lost"),
        (DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (VERSION_MISMATCH, "NVML/RM version mismatch"),
    ],
)
def test_driver_that_dies_says_so_and_is_read_when_it_is_back(
    driver: DriverStub, start: Start, error: int, words: str
) -> None:
    reader = start("reader")
    alive = reader.ask()
    driver.fail(error)
    for _ in range(2):  # the driver that was open, then one opened anew
        assert words in reader.ask()["problem"]
    driver.write(Card())
    assert reader.ask() == alive


def test_second_card_is_read_where_the_first_is_hidden(driver: DriverStub, start: Start) -> None:
    """CUDA_VISIBLE_DEVICES names it by its number or its UUID."""
    small = Card("NVIDIA GeForce RTX 3060", (8, 6), 12_288, 200)
    driver.write(Card(), small)
    for name in ("1", "GPU-00000001-0000-0000-0000-000000000000"):
        reading = start("reader", CUDA_VISIBLE_DEVICES=name).ask()
        assert (reading["name"], reading["capability"]) == (small.name, [8, 6])
        assert reading["total_bytes"] == 12_288 * MIB
    assert "no card 2" in start("reader", CUDA_VISIBLE_DEVICES="2").ask()["problem"]


# --- Ray ---


@pytest.mark.parametrize("num_cards", [0, 1, 2])
def test_ray_counts_the_cards(driver: DriverStub, start: Start, num_cards: int) -> None:
    """Where the resource `GPU` of a cluster comes from, whose share a model's replica asks for."""
    driver.write(*[Card()] * num_cards)
    found = start("ray").line()
    assert found["num_gpus"] == num_cards
    assert found["kind"] == ("GeForce-RTX-5080" if num_cards else None)


def test_ray_counts_no_card_where_the_driver_is_dead(driver: DriverStub, start: Start) -> None:
    driver.fail(DRIVER_NOT_LOADED)
    assert start("ray").line() == {"num_gpus": 0, "kind": None}


# --- the watch ---


def test_alarm_is_raised_when_blender_opens_and_ends_when_it_closes(
    driver: DriverStub, start: Start
) -> None:
    driver.write(STUDIO.beside(ENGINE))
    watch = start("watch")
    assert watch.line()["alarm"] is False
    driver.write(STUDIO.beside(ENGINE, blender(1_700)))
    alarm = watch.until(lambda state: state["alarm"])
    assert "blender" in [p["name"] for p in alarm["processes"]]
    driver.write(STUDIO)
    assert watch.until(lambda state: not state["alarm"])["used_bytes"] == (461 + 730) * MIB


def test_watch_tells_of_a_driver_that_dies_and_of_its_return(
    driver: DriverStub, start: Start
) -> None:
    watch = start("watch")
    assert watch.line()["name"] == Card().name
    driver.fail(GPU_IS_LOST)
    dead = watch.until(lambda state: state["problem"])
    assert "GPU is lost" in dead["problem"]
    assert dead["used_bytes"] is None
    driver.write(STUDIO)
    assert watch.until(lambda state: state["name"])["used_bytes"] == (461 + 730) * MIB


def test_watch_tells_of_a_driver_that_is_mute_and_of_its_return(
    driver: DriverStub, start: Start
) -> None:
    """A driver that has lost its card can keep a call for minutes."""
    watch = start("watch")
    assert watch.line()["name"] == Card().name
    driver.fall_mute()
    assert "has not answered" in watch.until(lambda state: state["problem"])["problem"]
    driver.write(STUDIO)
    assert watch.until(lambda state: state["name"])["used_bytes"] == (461 + 730) * MIB


# --- the place ---


def is_verdict(line: dict) -> bool:
    return "free_bytes" not in line


def test_place_is_free_when_the_other_program_has_ended(driver: DriverStub, start: Start) -> None:
    driver.write(STUDIO.beside(blender(9_000)))
    place = start("place", "13.5", "30")
    assert place.line()["free_bytes"] < STUDIO.free_bytes
    driver.write(STUDIO)
    assert place.until(is_verdict) == {"proved_bytes": STUDIO.free_bytes}


def test_place_that_stays_taken_is_refused_with_its_holder(
    driver: DriverStub, start: Start
) -> None:
    driver.write(STUDIO.beside(blender(9_000)))
    refused = start("place", "13.5", "0.3").until(is_verdict)
    assert refused["code"] == "gpu_memory_taken"
    assert "process 4200903 (blender) 8.79 GiB" in refused["message"]


def test_place_under_wsl2_is_refused_without_a_name(driver: DriverStub, start: Start) -> None:
    driver.write(STUDIO.beside(blender(9_000)), is_wsl2=True)
    refused = start("place", "13.5", "0.3").until(is_verdict)
    assert refused["code"] == "gpu_memory_taken"
    assert "no program that the driver names" in refused["message"]


def test_place_is_left_to_the_engine_where_the_driver_dies(
    driver: DriverStub, start: Start
) -> None:
    driver.write(STUDIO.beside(blender(9_000)))
    place = start("place", "13.5", "30")
    place.line()
    driver.fail(GPU_IS_LOST)
    assert place.until(is_verdict) == {"proved_bytes": None}


# --- a driver that keeps every call ---


def test_reader_ends_a_call_that_the_driver_keeps_and_reads_when_it_is_back(
    driver: DriverStub, start: Start
) -> None:
    reader = start("reader", REHEARSAL_ANSWER_S="1")
    alive = reader.ask()
    driver.fall_mute()
    for _ in range(2):  # the driver that was open, then one opened anew
        assert "has not answered" in reader.ask()["problem"]
    driver.write(Card())
    wait_until(lambda: reader.ask() == alive, 10, "the driver is read")


def test_place_is_left_to_the_engine_where_the_driver_is_mute(
    driver: DriverStub, start: Start
) -> None:
    driver.write(STUDIO.beside(blender(9_000)))
    place = start("place", "13.5", "30", REHEARSAL_ANSWER_S="1")
    place.line()
    driver.fall_mute()
    assert place.until(is_verdict) == {"proved_bytes": None}


@pytest.mark.rehearse  # each command first waits twenty seconds for the driver
@pytest.mark.timeout(400)
def test_commands_and_a_start_do_without_a_driver_that_is_mute(
    driver: DriverStub, start: Start, tmp_path: Path
) -> None:
    """The doctor says so, the plan is one on paper, and the engine looks for itself."""
    driver.fall_mute()
    soon = {"REHEARSAL_ANSWER_S": "0.2"}
    command = start("command", "doctor", "--json", LLM_BACKEND_PROFILE="rtx5080", **soon)
    gpu = next(f for f in json.loads(command.output(120)[1])["findings"] if f["check"] == "gpu")
    assert gpu["level"] == "problem"
    plan = json.loads(start("command", "plan", "--json", **soon).output(120)[1])
    assert plan["total_bytes"] > 15 * 1024 * MIB
    config = gpu_place_config(tmp_path)
    ready = start("preflight", str(config), **UTILIZATION, **soon).line(120)
    assert ready == {"profile": "cpu-demo"}


# --- before a start ---


def test_preflight_refuses_a_start_beside_blender_and_names_it(
    driver: DriverStub, start: Start, tmp_path: Path
) -> None:
    config = gpu_place_config(tmp_path)
    driver.write(STUDIO.beside(blender(14_900)))
    refused = start("preflight", str(config), **UTILIZATION).line()
    assert "process 4200903 (blender) 14.55 GiB" in refused["message"]
    driver.write(STUDIO)
    assert start("preflight", str(config), **UTILIZATION).line() == {"profile": "cpu-demo"}


def test_plan_is_made_for_the_card_that_is_here(driver: DriverStub, start: Start) -> None:
    def plans() -> dict:
        _, output = start("command", "plan", "--json").output()
        return json.loads(output)

    assert plans()["total_bytes"] == 15_841 * MIB
    driver.write(Card("NVIDIA GeForce RTX 5090", total_mib=32_607))
    larger = plans()
    assert larger["total_bytes"] == (32_607 - 462) * MIB
    assert all(plan["fits"] for plan in larger["models"])


# --- doctor ---


def findings(start: Start) -> dict[str, tuple[str, str]]:
    """The doctor's checks of the card: name -> level and text."""
    _, output = start("command", "doctor", "--json", LLM_BACKEND_PROFILE="rtx5080").output()
    found = [f for f in json.loads(output)["findings"] if re.match("gpu|driver", f["check"])]
    found.sort(key=lambda f: ["ok", "warning", "problem"].index(f["level"]))  # the worst stands
    return {f["check"]: (f["level"], f["text"]) for f in found}


def test_doctor_knows_the_card_and_who_uses_it(driver: DriverStub, start: Start) -> None:
    driver.write(STUDIO.beside(blender(14_900)))
    found = findings(start)
    card = "NVIDIA GeForce RTX 5080, 15.92 GiB, compute capability 12.0"
    assert found["gpu"] == ("ok", card)
    assert found["driver"] == ("ok", "driver 580.95.05, runs CUDA 13.0")
    level, text = found["gpu memory"]
    assert level == "problem"
    assert "4200903 (blender) 14.55 GiB" in text


def test_doctor_finds_no_fault_in_an_idle_card(driver: DriverStub, start: Start) -> None:
    driver.write(STUDIO)
    assert {level for level, _ in findings(start).values()} == {"ok"}


def test_doctor_finds_a_driver_that_is_dead(driver: DriverStub, start: Start) -> None:
    driver.fail(DRIVER_NOT_LOADED)
    assert {level for level, _ in findings(start).values()} == {"problem"}
