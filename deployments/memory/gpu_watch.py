"""Polls this machine's card, and raises an alarm where its memory is nearly full.

It runs in the Switchboard, which is on the head node: on one GPU machine, the node with the card.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from deployments.memory.nvml import NOTHING_READ, GpuReader, GpuReadError, GpuReading
from deployments.memory.plan import MIB
from deployments.settings import GpuSettings

logger = logging.getLogger("llm_backend.gpu_watch")

# An engine at its limit goes up and down by some hundred MiB with each batch, which is to be one
# alarm, not fifty: it ends below the line by this share of the memory, or this much below danger.
_CLEAR_GAP = 0.03
_CLEAR_BYTES = MIB * 200
# With an engine and a desktop on it a card of 16 GB is 95 % full, and all is well. Danger is that
# little left for an allocation, or that much more in use than when the engine became ready.
_LEAST_FREE_BYTES = MIB * 300
_MOST_GROWTH_BYTES = MIB * 500
_ANSWER_S = 5.0  # a driver that has lost its card can keep a call for ever
_NUM_IN_EVENT = 3


@dataclass(frozen=True)
class GpuState:
    """The last look at the card, and whether its memory is nearly full."""

    reading: GpuReading = NOTHING_READ
    is_alarming: bool = False


NO_GPU = GpuState()


def next_alarm(
    was_alarming: bool, reading: GpuReading, alarm_at: float, ready_bytes: int | None
) -> bool:
    """Whether there is an alarm after a look; a look that tells nothing changes nothing.

    There is one where (1) the share in use reaches `alarm_at`, and (2) little is free, or (3) much
    more is in use than `ready_bytes`, which were in use when the engine became ready (None: there
    is no engine).
    """
    share, used_bytes = reading.used_share, reading.used_bytes or 0
    if share is None:
        return was_alarming
    clear_bytes = _CLEAR_BYTES if was_alarming else 0
    is_full = share >= (alarm_at - _CLEAR_GAP if was_alarming else alarm_at)  # (1)
    is_tight = (reading.free_bytes or 0) < _LEAST_FREE_BYTES + clear_bytes  # (2)
    has_grown = (
        ready_bytes is not None and used_bytes - ready_bytes > _MOST_GROWTH_BYTES - clear_bytes
    )  # (3)
    return is_full and (is_tight or has_grown)


class GpuWatch:
    """Looks at the card at an interval, and goes on when the driver fails and comes back."""

    def __init__(
        self,
        settings: GpuSettings,
        open_reader: Callable[[], GpuReader],
        serving_epoch: Callable[[], int | None],
    ) -> None:
        self._settings = settings
        self._serving_epoch = serving_epoch  # of the engine that serves; None while none does
        self._ready_epoch: int | None = None
        self._ready_bytes: int | None = None  # in use when that engine became ready
        self._open_reader = open_reader
        self._reader: GpuReader | None = None
        self._asking: asyncio.Future[GpuReading] | None = None
        self._problem: str | None = None  # logged once, not at each look

    async def states(self) -> AsyncIterator[GpuState]:
        """Each look, for ever; the questions to the driver are asked in a thread."""
        is_alarming = False
        while True:
            reading = await self._look()
            self._note_ready(reading)
            alarm_at = self._settings.alarm_at
            is_alarming = next_alarm(is_alarming, reading, alarm_at, self._ready_bytes)
            if reading.problem != self._problem:
                self._problem = reading.problem
                logger.warning("the GPU: %s", reading.problem or "its figures are back")
            yield GpuState(reading, is_alarming)
            await asyncio.sleep(self._settings.interval_s)

    def _note_ready(self, reading: GpuReading) -> None:
        epoch = self._serving_epoch()
        if epoch != self._ready_epoch and reading.used_bytes is not None:
            self._ready_epoch = epoch
            self._ready_bytes = None if epoch is None else reading.used_bytes

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
