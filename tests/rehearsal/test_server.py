"""A real server with real engines on the CPU, whose place is the stub's card: what a studio's
machine does to a switch."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.server import Server, running, wait_until
from tests.rehearsal.driver import DESKTOP, GPU_IS_LOST, Card, DriverStub, blender
from tests.rehearsal.place import UTILIZATION, gpu_place
from tests.rehearsal.studio import ENGINE_MIB, Studio

MIB = 2**20

pytestmark = [pytest.mark.rehearse, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(
    libraries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DriverStub, Server]]:
    folder = tmp_path_factory.mktemp("server")
    driver = DriverStub(libraries, folder)
    driver.write(Card(processes=DESKTOP))
    environment = driver.variables | UTILIZATION
    configs = gpu_place(folder)
    with running(folder, ray_environment=environment, config_dir=str(configs)) as server:
        yield driver, server


@pytest.fixture
def studio(server: tuple[DriverStub, Server]) -> Iterator[Studio]:
    """With qwen-14b resident, and nothing but the desktop beside it."""
    with Studio(*server).followed() as studio:
        studio.server.wait_serving("qwen-14b")
        yield studio
        studio.run()
        studio.server.switch("qwen-14b")


def test_place_is_the_card_and_engines_compute_on_the_cpu(studio: Studio) -> None:
    """Ray's share, the plan and the watch are the card's; the answer is a real one."""
    gpu = wait_until(lambda: len((g := studio.gpu())["processes"]) == 3 and g, 30, "it is watched")
    assert (gpu["name"], gpu["total_bytes"]) == ("NVIDIA GeForce RTX 5080", 16_303 * MIB)
    with studio.server.http as http:
        would = http.post("/admin/switch", json={"model": "qwen-coder", "dry_run": True}).json()
    assert (would["memory"]["device"], would["memory"]["fits"]) == ("cuda", True)
    answer = studio.server.chat("qwen-14b").json()
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_switch_waits_for_the_cards_memory_and_finds_it_given_back(studio: Studio) -> None:
    assert studio.server.switch("qwen-coder").json()["state"] == "done"
    memory = studio.server.get("/admin/status")["memory"]
    assert memory["freed_last_bytes"] == ENGINE_MIB * MIB
    assert memory["warning"] is None


def test_scene_that_is_open_before_a_switch_refuses_it_and_the_old_model_serves_on(
    studio: Studio,
) -> None:
    """It leaves no room for any engine, also when the small one that serves is gone."""
    epoch = studio.server.get("/health")["epoch"]
    studio.engine_mib = 200
    studio.run(blender(14_900))
    ticket = studio.server.switch("qwen-coder").json()
    assert ticket["state"] == "failed"
    assert "(blender) 14.55 GiB" in ticket["error"]["message"]
    assert "unloading" not in [phase["phase"] for phase in ticket["phases"]]
    assert studio.server.get("/health")["epoch"] == epoch
    assert studio.server.chat("qwen-14b").status_code == 200


def test_scene_that_opens_in_the_middle_of_a_switch_is_named_and_the_old_model_comes_back(
    studio: Studio,
) -> None:
    """It takes what the old engine frees. When it is closed the rollback finds room, and then the
    switch does."""
    epoch = studio.server.get("/health")["epoch"]
    studio.opens_when_free = blender(14_900)
    with studio.server.http as http:
        begun = http.post("/admin/switch", json={"model": "qwen-coder"}).json()
    refused = wait_until(lambda: (t := studio.ticket(begun["id"]))["error"] and t, 120, "refused")
    assert refused["error"]["code"] == "gpu_memory_taken"
    assert "(blender) 14.55 GiB" in refused["error"]["message"]
    studio.run()
    ticket = wait_until(
        lambda: (t := studio.ticket(begun["id"]))["state"] != "running" and t, 120, "it is over"
    )
    assert (ticket["state"], ticket["error"]) == ("rolled_back", refused["error"])
    studio.server.wait_serving("qwen-14b", after_epoch=epoch)
    assert studio.server.chat("qwen-14b").status_code == 200
    assert studio.server.switch("qwen-coder").json()["state"] == "done"


def test_alarm_is_shown_while_the_card_is_full(studio: Studio) -> None:
    studio.run(blender(2_000))
    wait_until(lambda: studio.server.get("/health")["gpu"]["alarm"], 30, "the alarm")
    studio.run()
    wait_until(lambda: not studio.server.get("/health")["gpu"]["alarm"], 30, "its end")


def test_driver_that_dies_stops_no_answer_and_no_switch(server: tuple[DriverStub, Server]) -> None:
    """What cannot be read is left to the engine, which looks for itself."""
    driver, running = server
    driver.fail(GPU_IS_LOST)
    wait_until(
        lambda: "GPU is lost" in (running.get("/admin/status")["gpu"]["problem"] or ""), 30, "told"
    )
    assert running.switch("qwen-coder").json()["state"] == "done"
    assert running.chat("qwen-coder").status_code == 200
    driver.write(Card(processes=DESKTOP))
    wait_until(lambda: running.get("/health")["gpu"]["name"], 30, "its figures are back")
    assert running.switch("qwen-14b").json()["state"] == "done"
