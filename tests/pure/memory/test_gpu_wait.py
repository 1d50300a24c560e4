"""The proof of free memory, against a fake card."""

import asyncio
import time

import pytest

from deployments.engine.events import EngineFailed
from deployments.memory.gpu_wait import open_card, wait_until_memory_freed
from deployments.memory.nvml import GpuProcess, GpuReadError, GpuReading

GIB = 2**30
TOTAL = 16 * GIB
NEEDED = 13.6 * GIB


class FakeCard:
    """Shows one state after the other, and stays at the last."""

    def __init__(self, *free_gib: float, processes: tuple[GpuProcess, ...] = ()) -> None:
        self.looks = 0
        self._free = list(free_gib)
        self._processes = processes

    def read(self) -> GpuReading:
        free = self._free[min(self.looks, len(self._free) - 1)]
        self.looks += 1
        return GpuReading(total_bytes=TOTAL, free_bytes=int(free * GIB), processes=self._processes)


async def test_free_memory_is_taken_at_once():
    card = FakeCard(15)
    assert (await wait_until_memory_freed(card, NEEDED, 5)).free_bytes == 15 * GIB
    assert card.looks == 1


async def test_memory_that_comes_back_late_is_waited_for():
    card = FakeCard(2, 2, 15)
    await wait_until_memory_freed(card, NEEDED, 5)
    assert card.looks == 3


async def test_more_than_is_needed_is_waited_for_while_it_comes_back():
    """In pieces, after an unload: a larger KV cache then fits."""
    card = FakeCard(8, 9, 12, 15)
    look = await wait_until_memory_freed(card, 6 * GIB, 5, wanted_bytes=14 * GIB)
    assert (look.free_bytes, card.looks) == (15 * GIB, 4)


async def test_memory_that_other_programs_keep_is_not_waited_for_long():
    """Blender holds 4 GiB, and an engine fits beside it."""
    look = await wait_until_memory_freed(FakeCard(2, 11), 6 * GIB, 60, wanted_bytes=14 * GIB)
    assert look.free_bytes == 11 * GIB


async def test_memory_that_stays_taken_fails_with_needed_free_and_holders():
    """Somebody else holds the card; the three largest are named."""
    processes = (
        GpuProcess(7, "blender", 9 * GIB),
        GpuProcess(8, "Xorg", GIB // 2),
        GpuProcess(9, "a", None),
        GpuProcess(10, "b", 0),
    )
    began = time.monotonic()
    with pytest.raises(EngineFailed) as failed:
        await wait_until_memory_freed(FakeCard(6, processes=processes), NEEDED, 0.2)
    assert time.monotonic() - began < 20
    assert failed.value.problem.code == "gpu_memory_taken"
    assert failed.value.problem.message == (
        "the GPU has 6.00 GiB free and 13.60 are needed; held by: process 7 (blender) 9.00 GiB, "
        "process 8 (Xorg) 0.50 GiB, process 9 (a)"
    )


async def test_waiting_does_not_block_the_event_loop():
    waiting = asyncio.ensure_future(wait_until_memory_freed(FakeCard(1), NEEDED, 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


def test_machine_without_nvml_is_no_reason_not_to_load():
    assert open_card("0") is None or open_card("0").read().total_bytes > 0


async def test_driver_that_stops_answering_is_no_reason_not_to_load():
    """vLLM looks for itself; a load that is refused for a blind look would be refused for ever."""

    class Lost:
        def read(self) -> GpuReading:
            raise GpuReadError("GPU is lost")

    assert await wait_until_memory_freed(Lost(), NEEDED, 5) is None
