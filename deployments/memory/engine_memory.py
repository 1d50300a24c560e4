"""Sizes an engine by what is free on the card as it starts, and measures what it then holds."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from deployments.checkpoints.shape import UnknownShapeError
from deployments.engine import gpu_lock
from deployments.engine.args import MemoryShare
from deployments.engine.events import EngineFailed
from deployments.memory import overhead
from deployments.memory.gpu_wait import wait_until_memory_freed
from deployments.memory.nvml import NOTHING_READ, GpuReader, GpuReading
from deployments.memory.plan import MIB, Plan, Room, gib
from deployments.memory.room import max_share, plan_on_disk, usable_bytes
from deployments.residency import Problem
from deployments.settings import ModelSpec, Settings

_MOST_SLEEPER_GROWTH_BYTES = 256 * MIB

logger = logging.getLogger("llm_backend.engine_memory")


@dataclass(frozen=True)
class Claim:
    """What one engine may take of the card.

    `plan` is None where there is none: without a card, with a driver that does not answer, and for
    a checkpoint whose shape is not known. vLLM then sizes the KV cache by the settings.
    """

    before: GpuReading = NOTHING_READ  # the card before the start
    plan: Plan | None = None

    @property
    def share(self) -> MemoryShare | None:
        """For the engine's command line."""
        plan = self.plan
        if plan is None:
            return None
        return MemoryShare(plan.utilization, plan.kv_cache_bytes, plan.context_tokens)


class EngineMemory:
    """The memory of the one engine that a replica runs.

    `card`: None on a machine without one, or where NVML cannot be used.
    """

    def __init__(self, settings: Settings, card: GpuReader | None) -> None:
        self._settings = settings
        self._card = card
        self._claim = Claim()
        self._asleep_bytes: list[int] = []  # what the engine held in each of its sleeps

    async def claim(self, spec: ModelSpec, folder: Path) -> Claim:
        """Wait until the memory for an engine of `spec` is free, and plan with what is free then.

        Raises:
            EngineFailed: other programs hold too much; the message names them.
        """
        self._asleep_bytes.clear()
        self._claim = Claim()
        if self._card:
            self._claim = await self._claim_card(self._card, spec, folder)
        return self._claim

    async def _claim_card(self, card: GpuReader, spec: ModelSpec, folder: Path) -> Claim:
        timeout_s = self._settings.switching.unload_timeout_s
        try:
            total_bytes = usable_bytes(await asyncio.to_thread(card.read))
        except Exception as exc:  # noqa: BLE001  vLLM looks for itself
            logger.warning("the GPU's memory cannot be read: %s", exc)
            return Claim()
        alone = self._plan(spec, folder, self._room(total_bytes))
        if alone is None:
            share = spec.engine.gpu_memory_utilization or 0
            reading = await wait_until_memory_freed(card, share * total_bytes, timeout_s)
            return Claim(reading or NOTHING_READ)
        if not alone.fits:
            raise _refusal(spec, alone)
        reading = await wait_until_memory_freed(
            card, alone.floor_bytes, timeout_s, wanted_bytes=alone.engine_bytes
        )
        if reading is None:
            return Claim(plan=alone)
        plan = self._plan(spec, folder, self._room(total_bytes, reading))
        if plan and not plan.fits:  # another program was faster by a moment
            raise _refusal(spec, plan)
        return Claim(reading, plan)

    def _room(self, total_bytes: int, reading: GpuReading = NOTHING_READ) -> Room:
        return Room("cuda", total_bytes, reading.free_bytes, max_share=max_share(self._settings))

    def _plan(self, spec: ModelSpec, folder: Path, room: Room) -> Plan | None:
        try:
            return plan_on_disk(spec, folder, room, self._settings.home)
        except UnknownShapeError as exc:
            logger.warning("no memory plan for %s: %s", spec.name, exc)
            return None

    async def learn(self, spec: ModelSpec, session: int) -> None:
        """Learn the overhead of an engine that is ready."""
        plan = self._claim.plan
        if self._card is None or plan is None:
            return
        try:
            ready = await asyncio.to_thread(self._card.read)
            pids = await asyncio.to_thread(_pids, session)
            held_bytes = overhead.engine_bytes(self._claim.before, ready, pids)
            if held_bytes is not None:
                home = self._settings.home
                await asyncio.to_thread(overhead.learn, spec, plan, held_bytes, home)
        except Exception:  # a worse estimate is no reason not to serve
            logger.exception("could not measure the memory of %s", spec.target)

    async def fell_asleep(self, spec: ModelSpec, session: int) -> None:
        """Measure what a sleeping engine still holds of the card.

        Raises:
            EngineFailed: much more than in its first sleep. Sleepers were seen to grow from 412 to
                5,184 MiB in a day (vllm#36651).
        """
        held_bytes = await self._held_bytes(session)
        if held_bytes is None:
            return
        self._asleep_bytes.append(held_bytes)
        grown_bytes = held_bytes - self._asleep_bytes[0]
        if grown_bytes > _MOST_SLEEPER_GROWTH_BYTES:
            message = (
                f"{spec.target} holds {gib(held_bytes)} of the GPU's memory asleep, "
                f"{gib(grown_bytes)} more than in its first sleep"
            )
            raise EngineFailed(Problem("sleeper_grew", message))

    async def prove_room_to_wake(self) -> None:
        """Wait until the memory that the engine gave back to sleep is free again.

        Raises:
            EngineFailed: other programs hold too much of it; the message names them.
        """
        plan = self._claim.plan
        if self._card and plan:
            asleep_bytes = self._asleep_bytes[-1] if self._asleep_bytes else plan.overhead_bytes
            timeout_s = self._settings.switching.unload_timeout_s
            await wait_until_memory_freed(self._card, plan.engine_bytes - asleep_bytes, timeout_s)

    async def _held_bytes(self, session: int) -> int | None:
        """What the driver says that an engine holds; None where it does not say."""
        if self._card is None:
            return None
        try:
            reading = await asyncio.to_thread(self._card.read)
            pids = await asyncio.to_thread(_pids, session)
        except Exception:  # a sleeper that cannot be measured sleeps on
            logger.exception("could not measure the memory of a sleeping engine")
            return None
        return reading.held_by(pids) or None


def _refusal(spec: ModelSpec, plan: Plan) -> EngineFailed:
    return EngineFailed(Problem("does_not_fit", f"{spec.target} does not fit: {plan.reason}"))


def _pids(session: int) -> set[int]:
    return {process.pid for process in gpu_lock.session_members(session)}
