"""Polls this machine's card, and raises an alarm where its memory is nearly full.

It runs in the Switchboard, which is on the head node: on one GPU machine, the node with the card.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from deployments.memory.nvml import NOTHING_READ, GpuReader, GpuReadError, GpuReading
from deployments.settings import GpuSettings

logger = logging.getLogger("llm_backend.gpu_watch")

# Below the alarm line by this share of the memory, the alarm ends: an engine at its limit goes up
# and down by some hundred MiB with each batch, and is to be one alarm, not fifty.
_CLEAR_GAP = 0.03
_ANSWER_S = 5.0  # a driver that has lost its card can keep a call for ever
_NUM_IN_EVENT = 3


@dataclass(frozen=True)
class GpuState:
    """The last look at the card, and whether its memory is nearly full."""

    reading: GpuReading = NOTHING_READ
    is_alarming: bool = False


NO_GPU = GpuState()


def next_alarm(was_alarming: bool, used_share: float | None, alarm_at: float) -> bool:
    """Whether there is an alarm after a look; one that says nothing changes nothing."""
    if used_share is None:
        return was_alarming
    return used_share >= (alarm_at - _CLEAR_GAP if was_alarming else alarm_at)


class GpuWatch:
    """Looks at the card at an interval, and goes on when the driver fails and comes back."""

    def __init__(self, settings: GpuSettings, open_reader: Callable[[], GpuReader]) -> None:
        self._settings = settings
        self._open_reader = open_reader
        self._reader: GpuReader | None = None
        self._asking: asyncio.Future[GpuReading] | None = None
        self._problem: str | None = None  # logged once, not at each look

    async def states(self) -> AsyncIterator[GpuState]:
        """Each look, for ever; the questions to the driver are asked in a thread."""
        is_alarming = False
        while True:
            reading = await self._look()
            is_alarming = next_alarm(is_alarming, reading.used_share, self._settings.alarm_at)
            if reading.problem != self._problem:
                self._problem = reading.problem
                logger.warning("the GPU: %s", reading.problem or "its figures are back")
            yield GpuState(reading, is_alarming)
            await asyncio.sleep(self._settings.interval_s)

    async def _look(self) -> GpuReading:
        """Bounded: while the driver keeps one question, no second one is asked."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._read))
        done, _ = await asyncio.wait([self._asking], timeout=_ANSWER_S)
        if not done:
            return GpuReading(problem=f"the driver has not answered for {_ANSWER_S:.0f} s")
        asking, self._asking = self._asking, None
        return asking.result()

    def _read(self) -> GpuReading:
        try:
            self._reader = self._reader or self._open_reader()
            return self._reader.read()
        except GpuReadError as exc:
            self._reader = None  # a driver that comes back wants to be opened anew
            return GpuReading(problem=str(exc))


def alarm_event(state: GpuState, alarm_at: float) -> dict[str, Any]:
    """What the event `gpu_alarm` says."""
    reading = state.reading
    return {
        "on": state.is_alarming,
        "alarm_at": alarm_at,
        "used_bytes": reading.used_bytes,
        "total_bytes": reading.total_bytes,
        "processes": _processes_json(reading)[:_NUM_IN_EVENT],
    }


def gpu_json(state: GpuState) -> dict[str, Any]:
    """The card as every client may see it; without a card the same fields, null."""
    reading = state.reading
    return {
        "name": reading.name,
        "driver": reading.driver,
        "total_bytes": reading.total_bytes,
        "used_bytes": reading.used_bytes,
        "free_bytes": reading.free_bytes,
        "utilization_percent": reading.utilization_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "alarm": state.is_alarming,
    }


def gpu_admin_json(state: GpuState) -> dict[str, Any]:
    """The card as an admin sees it: who holds it, and why there are no figures."""
    reading = state.reading
    return gpu_json(state) | {"processes": _processes_json(reading), "problem": reading.problem}


def _processes_json(reading: GpuReading) -> list[dict[str, Any]]:
    return [{"pid": p.pid, "name": p.name, "used_bytes": p.used_bytes} for p in reading.processes]
