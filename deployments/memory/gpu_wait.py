"""Proves that the GPU's memory is free before an engine asks for it.

vLLM refuses to start unless `gpu_memory_utilization` of the card's whole memory is free, and says
so only after half a minute of imports. A driver gives memory back a little after a process has
ended.
"""

import asyncio
import logging

from deployments.engine.events import EngineFailed
from deployments.memory.nvml import GpuProcess, GpuReader, GpuReadError, GpuReading, open_nvml
from deployments.memory.plan import GIB, gib
from deployments.residency import Problem

logger = logging.getLogger("llm_backend.gpu_memory")

_POLL_S = 0.1


def open_card(visible_devices: str | None) -> GpuReader | None:
    """The card's reader; None, with a warning, where NVML cannot be used."""
    try:
        return open_nvml(visible_devices)
    except GpuReadError as exc:  # no NVML is no reason not to try a load
        logger.warning("the GPU's memory cannot be read: %s", exc)
        return None


async def wait_until_memory_freed(
    reader: GpuReader, share: float, timeout_s: float, held_bytes: int = 0
) -> GpuReading | None:
    """Wait until `share` of the card's memory is free; returns the last look.

    `held_bytes`: what the engine that needs the memory holds of it already.
    None, with a warning, when the driver stops answering: vLLM looks for itself.

    Raises:
        EngineFailed: it is not after `timeout_s`; the message names needed, free, and who holds
            the rest.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            reading = await asyncio.to_thread(reader.read)
        except GpuReadError as exc:
            logger.warning("the GPU's memory cannot be read: %s", exc)
            return None
        free, needed = reading.free_bytes or 0, share * (reading.total_bytes or 0) - held_bytes
        if free >= needed:
            return reading
        if asyncio.get_running_loop().time() >= deadline:
            raise EngineFailed(Problem("gpu_memory_taken", _describe(reading, free, needed)))
        await asyncio.sleep(_POLL_S)  # NVML tells only when asked


def _describe(reading: GpuReading, free: float, needed: float) -> str:
    holders = ", ".join(f"process {describe_process(p)}" for p in reading.processes[:3])
    return (
        f"the GPU has {gib(free)} free and {needed / GIB:.2f} are needed; "
        f"held by: {holders or 'no program that the driver names'}"
    )


def describe_process(process: GpuProcess) -> str:
    """As `7 (blender) 9.00 GiB`."""
    size = "" if process.used_bytes is None else f" {gib(process.used_bytes)}"
    return f"{process.pid} ({process.name}){size}"
