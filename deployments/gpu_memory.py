"""Proof that the GPU's memory is free before an engine asks for it.

vLLM refuses to start unless `gpu_memory_utilization` of the card's whole memory is free, and says
so only after half a minute of imports. A driver gives memory back a little after a process has
ended.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from deployments.engine import EngineFailed
from deployments.residency import Problem

logger = logging.getLogger("llm_backend.gpu_memory")

_POLL_S = 0.1
_GIB = 2**30


@dataclass(frozen=True)
class GpuMemory:
    """One look at a card."""

    total_bytes: int
    free_bytes: int
    holders: dict[str, int]  # process, by number and name -> bytes


class GpuReader(Protocol):
    """Where a look comes from: NVML, or a test."""

    def read(self) -> GpuMemory: ...


class NvmlReader:
    """The first card this process may see (`CUDA_VISIBLE_DEVICES`, set by Ray)."""

    def __init__(self, visible_devices: str | None) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        first = (visible_devices or "0").split(",")[0]
        if first.isdigit():
            self._card = pynvml.nvmlDeviceGetHandleByIndex(int(first))
        else:  # a card's UUID
            self._card = pynvml.nvmlDeviceGetHandleByUUID(first)

    def read(self) -> GpuMemory:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._card)
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        processes += self._nvml.nvmlDeviceGetGraphicsRunningProcesses(self._card)
        return GpuMemory(
            total_bytes=memory.total,
            free_bytes=memory.free,
            holders={self._name(p.pid): p.usedGpuMemory or 0 for p in processes},
        )

    def _name(self, pid: int) -> str:
        try:
            name = self._nvml.nvmlSystemGetProcessName(pid)
        except self._nvml.NVMLError:
            name = "unknown"
        return f"{pid} ({name.decode() if isinstance(name, bytes) else name})"


def open_card(visible_devices: str | None) -> GpuReader | None:
    """The card's reader; None, with a warning, where NVML can not be used."""
    try:
        return NvmlReader(visible_devices)
    except Exception as exc:  # noqa: BLE001  no NVML is no reason not to try a load
        logger.warning("the GPU's memory can not be read: %r", exc)
        return None


async def wait_until_memory_freed(
    reader: GpuReader, share: float, timeout_s: float, held_bytes: int = 0
) -> GpuMemory:
    """Wait until `share` of the card's memory is free; returns the last look.

    `held_bytes`: what whoever is to have it holds of it already.

    Raises:
        EngineFailed: it is not after `timeout_s`; the message names needed, free, and who holds
            the rest.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        memory = reader.read()
        needed = share * memory.total_bytes - held_bytes
        if memory.free_bytes >= needed:
            return memory
        if asyncio.get_running_loop().time() >= deadline:
            raise EngineFailed(Problem("gpu_memory_taken", _describe(memory, needed)))
        await asyncio.sleep(_POLL_S)  # NVML tells only when asked


def _describe(memory: GpuMemory, needed: float) -> str:
    by_size = sorted(memory.holders.items(), key=lambda item: -item[1])[:3]
    holders = ", ".join(f"process {name} {size / _GIB:.2f} GiB" for name, size in by_size)
    return (
        f"the GPU has {memory.free_bytes / _GIB:.2f} GiB free and {needed / _GIB:.2f} are needed; "
        f"held by: {holders or 'nobody that the driver names'}"
    )
