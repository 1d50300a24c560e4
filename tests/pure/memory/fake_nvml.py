"""NVML as `deployments/memory/nvml.py` uses it: a card whose state the test sets."""

from types import SimpleNamespace
from typing import Any

GIB = 2**30


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """One card; stands for the module `pynvml`."""

    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, used_gib: float = 1.0, total_gib: float = 16.0) -> None:
        self.used_gib, self.total_gib = used_gib, total_gib
        self.fault: str | None = None  # every question fails with it
        self.gaps: set[str] = set()  # questions this card does not answer
        self.opened: list[object] = []  # index or UUID of each card that was asked for
        self.compute = [SimpleNamespace(pid=7, usedGpuMemory=int(0.75 * GIB))]
        self.graphics = [SimpleNamespace(pid=8, usedGpuMemory=None)]

    def _answer(self, question: str, answer: Any) -> Any:
        if self.fault or question in self.gaps:
            raise FakeNvmlError(self.fault or "Not Supported")
        return answer

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.opened.append(index)
        return str(self._answer("handle", "card"))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.opened.append(uuid)
        return str(self._answer("handle", "card"))

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:
        free, total = int((self.total_gib - self.used_gib) * GIB), int(self.total_gib * GIB)
        return self._answer("memory", SimpleNamespace(total=total, free=free, used=total - free))

    def nvmlDeviceGetName(self, card: str) -> Any:
        return self._answer("name", b"NVIDIA GeForce RTX 5080")

    def nvmlSystemGetDriverVersion(self) -> Any:
        return self._answer("driver", "580.95.05")

    def nvmlSystemGetCudaDriverVersion(self) -> Any:
        return self._answer("cuda", 13000)

    def nvmlDeviceGetCudaComputeCapability(self, card: str) -> Any:
        return self._answer("capability", [12, 0])

    def nvmlDeviceGetUtilizationRates(self, card: str) -> Any:
        return self._answer("utilization", SimpleNamespace(gpu=37, memory=20))

    def nvmlDeviceGetTemperature(self, card: str, sensor: int) -> Any:
        return self._answer("temperature", 61)

    def nvmlDeviceGetPowerUsage(self, card: str) -> Any:
        return self._answer("power", 212500)

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> Any:
        return self._answer("compute", self.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: str) -> Any:
        return self._answer("graphics", self.graphics)

    def nvmlSystemGetProcessName(self, pid: int) -> Any:
        return self._answer("process", {7: b"blender", 8: "Xorg"}[pid])
