"""Checks that a model fits before a load, and measures what an unload gave back."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.checkpoints.checkpoint import CheckpointError
from deployments.checkpoints.shape import UnknownShapeError
from deployments.engine import gpu_lock
from deployments.memory.gpu_wait import open_card
from deployments.memory.nvml import GpuReader
from deployments.memory.plan import Plan, gib
from deployments.memory.room import card_room, host_room, plan_on_disk, session_bytes
from deployments.residency import Problem
from deployments.settings import ModelSpec, Settings

logger = logging.getLogger("llm_backend.host_memory")

DOES_NOT_FIT = "does_not_fit"
_NUM_CYCLES = 20
# A driver gives memory back in pieces, within some tenths of a second.
_SETTLE_POLL_S = 0.1
_SETTLE_LIMIT_S = 2.0


@dataclass(frozen=True)
class Cycle:
    """One unload: what it gave back, and what was left in the place after it."""

    model: str
    freed_bytes: int
    left_bytes: int


class MemoryCycles:
    """The last unloads. What is left after them must not grow: that would be a leak."""

    def __init__(self, max_drift_bytes: int) -> None:
        self._max_drift_bytes = max_drift_bytes
        self._cycles: deque[Cycle] = deque(maxlen=_NUM_CYCLES)
        self._first_left_bytes: int | None = None
        self._first_freed_bytes: dict[str, int] = {}  # by model

    def add(self, model: str, before_bytes: int, after_bytes: int) -> None:
        freed_bytes = before_bytes - after_bytes
        self._cycles.append(Cycle(model, freed_bytes, after_bytes))
        if self._first_left_bytes is None:
            self._first_left_bytes = after_bytes
        self._first_freed_bytes.setdefault(model, freed_bytes)

    def status(self) -> dict[str, Any]:
        """For `GET /admin/status`; `drift_bytes` is what the last unload left over the first's."""
        last = self._cycles[-1] if self._cycles else None
        first_bytes = self._first_left_bytes or 0
        drift_bytes = last.left_bytes - first_bytes if last else 0
        warning = None
        if last and drift_bytes > self._max_drift_bytes:
            warning = (
                f"{gib(last.left_bytes)} were left after {last.model} was unloaded, "
                f"{gib(drift_bytes)} more than after the first unload"
            )
        return {
            "freed_last_bytes": last.freed_bytes if last else None,
            "freed_baseline_bytes": self._first_freed_bytes[last.model] if last else None,
            "left_last_bytes": last.left_bytes if last else None,
            "left_baseline_bytes": self._first_left_bytes,
            "drift_bytes": drift_bytes,
            "max_drift_bytes": self._max_drift_bytes,
            "warning": warning,
            "cycles": [asdict(cycle) for cycle in self._cycles],
        }


def open_host_memory(settings: Settings) -> "HostMemory":
    """The memory of this machine."""
    card = open_card(settings.visible_devices) if settings.place.is_gpu else None
    return HostMemory(settings, card)


class HostMemory:
    """The card's memory, or the host's where there is no card.

    `card`: None on a machine without one, or where NVML cannot be used.
    """

    def __init__(self, settings: Settings, card: GpuReader | None) -> None:
        self._settings = settings
        self._card = card
        self._home = settings.home
        self.cycles = MemoryCycles(settings.memory.max_drift_bytes)

    def plan(self, spec: ModelSpec, folder: Path) -> Plan | None:
        """The plan for a whole checkpoint; None where it cannot be judged. Blocks."""
        try:
            if self._card:
                room = card_room(self._card, self._settings)
            elif not self._settings.place.is_gpu:
                room = host_room(self._home)
            else:
                return None
            return plan_on_disk(spec, folder, room, self._home)
        except UnknownShapeError as exc:
            logger.warning("no memory plan for %s: %s", spec.name, exc)
        except Exception:  # a driver that does not answer is no reason not to try a load
            logger.exception("no memory plan for %s", spec.name)
        return None

    def check(self, spec: ModelSpec, folder: Path) -> None:
        """Refuse a checkpoint that cannot fit. Blocks.

        Raises:
            CheckpointError: code `does_not_fit`; the message says what would make it fit.
        """
        made = self.plan(spec, folder)
        if made and not made.fits:
            message = f"{spec.name} does not fit: {made.reason}"
            if made.advice:
                message += f"; what would help: {', or '.join(made.advice)}"
            raise CheckpointError(Problem(DOES_NOT_FIT, message))

    @asynccontextmanager
    async def unloading(self, model: str) -> AsyncIterator[None]:
        """Around an unload: keeps what it gave back. An engine that is dead gives back nothing, and
        where engines sleep, what is left of the memory tells of no leak."""
        read, before_bytes = None, 0
        try:
            session = await asyncio.to_thread(self._session_of, model)
            read = self._meter(session) if session is not None else None
            before_bytes = await asyncio.to_thread(read) if read else 0
        except Exception:  # an unload does not depend on being measured
            logger.exception("could not read the memory that %s holds", model)
            read = None
        yield
        if read:
            await self._close_cycle(model, read, before_bytes)

    async def _close_cycle(self, model: str, read: Callable[[], int], before_bytes: int) -> None:
        try:
            self.cycles.add(model, before_bytes, await self._settled(read))
        except Exception:  # as above
            logger.exception("could not read the memory that %s gave back", model)
            return
        if warning := self.cycles.status()["warning"]:
            logger.warning("%s", warning)

    def _session_of(self, model: str) -> int | None:
        if self._settings.is_warm:
            return None
        return next((s for name, s in gpu_lock.holders(self._home) if name == model), None)

    def _meter(self, session: int) -> Callable[[], int] | None:
        if self._card:
            card = self._card

            def used_bytes() -> int:
                return card.read().used_bytes or 0

            return used_bytes
        return None if self._settings.place.is_gpu else lambda: session_bytes(session)

    async def _settled(self, read: Callable[[], int]) -> int:
        """What is held once it no longer shrinks."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_LIMIT_S
        last_bytes = await asyncio.to_thread(read)
        while self._card and loop.time() < deadline:
            await asyncio.sleep(_SETTLE_POLL_S)  # NVML tells only when asked
            now_bytes = await asyncio.to_thread(read)
            if now_bytes >= last_bytes:
                break
            last_bytes = now_bytes
        return last_bytes
