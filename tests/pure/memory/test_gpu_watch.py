"""The watch on the card, against a fake NVML: its figures, its alarm, and a driver that fails."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.memory import gpu_watch
from deployments.memory.gpu_watch import (
    NO_GPU,
    GpuState,
    GpuWatch,
    gpu_admin_json,
    gpu_json,
    next_alarm,
)
from deployments.memory.nvml import NOTHING_READ, GpuReader, GpuReadError, GpuReading, NvmlReader
from deployments.settings import AppArgs, GpuSettings, load_settings
from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.messages import Event
from tests.pure.memory.fake_nvml import GIB, FakeNvml
from tests.pure.switchboard.fake_host import FakeReplicas

SETTINGS = GpuSettings(alarm_at=0.95, interval_s=0.001)

pytestmark = pytest.mark.timeout(150)


def watch(nvml: FakeNvml) -> AsyncIterator[GpuState]:
    return GpuWatch(SETTINGS, lambda: NvmlReader(nvml, None), lambda: None).states()


# --- a reading ---


def test_reading_holds_what_the_driver_says():
    """Bytes, percent, degrees, watts; processes by size, of both kinds."""
    reading = NvmlReader(FakeNvml(used_gib=4), None).read()
    assert (reading.name, reading.driver) == ("NVIDIA GeForce RTX 5080", "580.95.05")
    assert (reading.used_bytes, reading.total_bytes) == (4 * GIB, 16 * GIB)
    assert (reading.free_bytes, reading.used_share) == (12 * GIB, 0.25)
    assert (reading.utilization_percent, reading.temperature_c) == (37, 61)
    assert reading.power_w == 212.5
    assert [(p.pid, p.name) for p in reading.processes] == [(7, "blender"), (8, "Xorg")]
    assert reading.processes[1].used_bytes is None


def test_card_that_answers_only_for_its_memory_is_read_all_the_same():
    """WSL2 and older cards leave questions open: those fields are null."""
    nvml = FakeNvml(used_gib=4)
    nvml.gaps = {"name", "driver", "utilization", "temperature", "power", "compute", "graphics"}
    reading = NvmlReader(nvml, None).read()
    assert reading.free_bytes == 12 * GIB
    assert reading.utilization_percent is None
    assert reading.power_w is None
    assert reading.processes == ()


@pytest.mark.parametrize(
    ("visible", "opened"), [(None, 0), ("", 0), ("2,0", 2), ("GPU-abc", "GPU-abc")]
)
def test_card_that_is_read_is_the_first_visible_one(visible, opened):
    nvml = FakeNvml()
    NvmlReader(nvml, visible)
    assert nvml.opened == [opened]


def test_capability_and_cuda_version_are_pairs():
    reader = NvmlReader(FakeNvml(), None)
    assert reader.compute_capability() == (12, 0)
    assert reader.cuda_version() == (13, 0)


# --- the alarm ---


def test_alarm_goes_on_at_the_line_and_off_well_below_it():
    """What swings about the line is one alarm."""
    shares = [0.94, 0.95, 0.949, 0.951, 0.925, 0.919, 0.94, 0.96]
    states = [False]
    for share in shares:
        card = GpuReading(total_bytes=1000, used_bytes=int(1000 * share), free_bytes=0)
        states.append(next_alarm(states[-1], card, 0.95, None))
    assert states[1:] == [False, True, True, True, True, False, False, True]


def test_look_that_says_nothing_changes_no_alarm():
    assert next_alarm(True, NOTHING_READ, 0.95, None)
    assert not next_alarm(False, NOTHING_READ, 0.95, None)


def card_with(free_gib: float) -> GpuReading:
    total_bytes, free_bytes = 16 * GIB, int(free_gib * GIB)
    return GpuReading(
        total_bytes=total_bytes, used_bytes=total_bytes - free_bytes, free_bytes=free_bytes
    )


def test_engine_with_a_desktop_beside_it_is_no_alarm():
    """95 to 97 % of a card of 16 GB are in use, and 0.6 GiB are free, as when it became ready."""
    card = card_with(free_gib=0.6)
    assert card.used_share > 0.95
    assert not next_alarm(False, card, 0.95, card.used_bytes)


def test_last_of_the_memory_is_an_alarm_until_there_is_clearly_more():
    assert next_alarm(False, card_with(0.2), 0.95, card_with(0.2).used_bytes)
    assert next_alarm(True, card_with(0.4), 0.95, card_with(0.2).used_bytes)
    assert not next_alarm(True, card_with(0.6), 0.95, card_with(0.2).used_bytes)


def test_growth_since_the_engine_was_ready_is_an_alarm():
    """Blender opens beside it."""
    ready_bytes = card_with(1.3).used_bytes
    assert not next_alarm(False, card_with(0.79), 0.95, None)
    assert next_alarm(False, card_with(0.79), 0.95, ready_bytes)
    assert not next_alarm(False, card_with(0.79), 0.95, card_with(0.9).used_bytes)


async def test_each_engine_has_its_own_measure_of_growth():
    nvml, epochs = FakeNvml(used_gib=10), [None, 1, 1, 2, 2]
    epoch_now = iter(epochs)
    states = GpuWatch(SETTINGS, lambda: NvmlReader(nvml, None), lambda: next(epoch_now)).states()
    assert not (await anext(states)).is_alarming
    nvml.used_gib = 14.8
    assert not (await anext(states)).is_alarming  # epoch 1 became ready
    nvml.used_gib = 15.4
    assert (await anext(states)).is_alarming  # 0.6 GiB more
    assert not (await anext(states)).is_alarming  # epoch 2 became ready with that
    assert not (await anext(states)).is_alarming


# --- the poller ---


async def test_driver_that_fails_and_comes_back_is_read_again():
    """Null figures with the reason meanwhile; opened anew after."""
    nvml = FakeNvml()
    states = watch(nvml)
    assert (await anext(states)).reading.free_bytes == 15 * GIB
    nvml.fault = "GPU is lost"
    lost = (await anext(states)).reading
    assert (lost.free_bytes, lost.problem) == (
        None,
        "the NVIDIA driver does not answer: GPU is lost",
    )
    assert "no card" in ((await anext(states)).reading.problem or "")
    nvml.fault = None
    assert (await anext(states)).reading.free_bytes == 15 * GIB
    assert nvml.opened == [0, 0]


async def test_machine_without_the_library_has_null_figures():
    def open_none() -> GpuReader:
        raise GpuReadError("the package nvidia-ml-py is not installed")

    state = await anext(GpuWatch(SETTINGS, open_none, lambda: None).states())
    assert state == GpuState(
        GpuReading(problem="the package nvidia-ml-py is not installed"), is_alarming=False
    )


async def test_driver_that_keeps_a_question_is_asked_no_second_one(monkeypatch):
    """The loop goes on, and the answer counts when it comes."""
    monkeypatch.setattr(gpu_watch, "_ANSWER_S", 0.02)
    release, asked = threading.Event(), []

    class Stuck:
        def read(self) -> GpuReading:
            asked.append(1)
            release.wait(10)
            return GpuReading(total_bytes=10, used_bytes=1)

    states = GpuWatch(SETTINGS, Stuck, lambda: None).states()
    try:
        for _ in range(3):
            assert "has not answered" in ((await anext(states)).reading.problem or "")
        assert asked == [1]
    finally:
        release.set()
    async with asyncio.timeout(60):
        assert any([state.reading.used_share == 0.1 async for state in _up_to(states, 0.1)])


async def _up_to(states: AsyncIterator[GpuState], share: float) -> AsyncIterator[GpuState]:
    async for state in states:
        yield state
        if state.reading.used_share == share:
            return


# --- what is told of it ---


def test_machine_without_a_card_shows_the_same_fields_null():
    card, none = gpu_json(GpuState(NvmlReader(FakeNvml(), None).read())), gpu_json(NO_GPU)
    assert set(card) == set(none)
    assert none.pop("alarm") is False
    assert set(none.values()) == {None}
    assert NO_GPU.reading is NOTHING_READ


def test_only_an_admin_sees_who_holds_the_card():
    state = GpuState(NvmlReader(FakeNvml(), None).read())
    assert "blender" not in str(gpu_json(state))
    assert gpu_admin_json(state)["processes"][0] == {
        "pid": 7,
        "name": "blender",
        "used_bytes": int(0.75 * GIB),
    }


async def test_switchboard_tells_of_the_alarm_once_each_way(tmp_path: Path) -> None:
    """In its events, its view and its status; a lost driver in between is no end of the alarm."""
    args = AppArgs(profile="rtx5080", home=str(tmp_path), default_model="none")
    settings = load_settings(args, has_gpu=True).model_copy(update={"gpu": SETTINGS})
    nvml = FakeNvml(used_gib=15.75)
    board = Switchboard(settings, FakeReplicas(), lambda: NvmlReader(nvml, None))
    try:
        on = await _next_alarm(board)
        assert (on["on"], on["used_bytes"]) == (True, int(15.75 * GIB))
        assert on["processes"][0]["name"] == "blender"
        assert board._runner.view.gpu.is_alarming
        nvml.fault = "GPU is lost"
        await _until(board, lambda gpu: gpu["problem"] is not None and gpu["alarm"])
        nvml.fault, nvml.used_gib = None, 4
        assert (await _next_alarm(board, after=1))["on"] is False
        await _until(board, lambda gpu: gpu["used_bytes"] == 4 * GIB and not gpu["alarm"])
    finally:
        await board.close()


async def _next_alarm(board: Switchboard, after: int = 0) -> dict:
    async with asyncio.timeout(60):
        while True:
            page = await board.events((board._runner.boot, after), 5)
            found: list[Event] = [e for e in page.events if e.kind == "gpu_alarm"]
            if found:
                return found[0].data


async def _until(board: Switchboard, is_it) -> None:
    async with asyncio.timeout(60):
        seen = None
        while not is_it((await board.status())["gpu"]):
            view = await board.watch("gateway", seen)
            seen = (view.boot, view.version)
