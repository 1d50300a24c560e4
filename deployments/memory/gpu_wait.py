"""Proves that the GPU's memory is free before an engine asks for it.

vLLM refuses to start unless the memory that it may fill is free, and says so only after half a
minute of imports. A driver gives memory back in pieces, some tenths of a second after a process has
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
_SETTLED_S = 0.5  # without another piece coming back


def open_card(visible_devices: str | None) -> GpuReader | None:
    """The card's reader; None, with a warning, where NVML cannot be used."""
    try:
        return open_nvml(visible_devices)
    except GpuReadError as exc:  # no NVML is no reason not to try a load
        logger.warning("the GPU's memory cannot be read: %s", exc)
        return None


async def wait_until_memory_freed(
    reader: GpuReader, needed_bytes: float, timeout_s: float, *, wanted_bytes: float = 0
) -> GpuReading | None:
    """Wait until `wanted_bytes` of the card are free, or `needed_bytes` and no more come back;
    returns the last reading.

    None, with a warning, when the driver stops answering: vLLM looks for itself.

    Raises:
        EngineFailed: less than `needed_bytes` are free after `timeout_s`; the message names the
            needed and the free memory, and the programs that hold the rest.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    most_bytes, grown_at = -1, clock()
    while True:
        try:
            reading = await asyncio.to_thread(reader.read)
        except GpuReadError as exc:
            logger.warning("the GPU's memory cannot be read: %s", exc)
            return None
        free_bytes, now = reading.free_bytes or 0, clock()
        if free_bytes > most_bytes:
            most_bytes, grown_at = free_bytes, now
        is_enough = free_bytes >= needed_bytes
        if is_enough and (free_bytes >= wanted_bytes or now - grown_at >= _SETTLED_S):
            return reading
        if now >= deadline:
            if is_enough:
                return reading
            raise EngineFailed(Problem("gpu_memory_taken", _describe(reading, needed_bytes)))
        await asyncio.sleep(_POLL_S)  # NVML tells only when asked


def _describe(reading: GpuReading, needed_bytes: float) -> str:
    holders = ", ".join(f"process {describe_process(p)}" for p in reading.processes[:3])
    return (
        f"the GPU has {gib(reading.free_bytes or 0)} free and {needed_bytes / GIB:.2f} are needed; "
        f"held by: {holders or 'no program that the driver names'}"
    )


def describe_process(process: GpuProcess) -> str:
    """As `7 (blender) 9.00 GiB`."""
    size = "" if process.used_bytes is None else f" {gib(process.used_bytes)}"
    return f"{process.pid} ({process.name}){size}"
