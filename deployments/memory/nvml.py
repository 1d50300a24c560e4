"""Reads the card through NVIDIA's management library (NVML)."""

import threading
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from deployments.memory.cuda_total import cuda_total_bytes

_T = TypeVar("_T")

_ANSWER_S = 15.0  # a first reading asks CUDA too, which may take 10 s (`cuda_total.py`)
_asking = threading.Lock()  # held while the driver owes this process an answer


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of the card."""

    pid: int
    name: str
    used_bytes: int | None  # None where the driver does not say, as under WSL2


@dataclass(frozen=True)
class GpuReading:
    """One look at a card; None is what the driver does not tell, or all where there is no card."""

    name: str | None = None
    driver: str | None = None
    total_bytes: int | None = None  # as the driver reports it
    cuda_total_bytes: int | None = None  # of it, what CUDA gives out to programs
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization_percent: int | None = None  # of the time since the driver's last sample
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[GpuProcess, ...] = ()
    problem: str | None = None  # why there are no figures

    @property
    def used_share(self) -> float | None:
        """Used of the whole memory, 0 to 1. The driver's own part counts as used."""
        if self.used_bytes is None or not self.total_bytes:
            return None
        return self.used_bytes / self.total_bytes

    def held_by(self, pids: Set[int]) -> int:
        """Bytes that these processes hold; 0 also where the driver does not say."""
        return sum(p.used_bytes or 0 for p in self.processes if p.pid in pids)


NOTHING_READ = GpuReading()


class GpuReadError(Exception):
    """The driver cannot be asked, or no longer answers; the text says why."""


class GpuReader(Protocol):
    """Where a look comes from: NVML, or a test. Blocks for milliseconds."""

    def read(self) -> GpuReading:
        """Raises GpuReadError."""


class NvmlReader:
    """The first card that `visible_devices` names (the value of `CUDA_VISIBLE_DEVICES`).

    `nvml` is the module `pynvml`, or what stands for it in a test.
    """

    def __init__(self, nvml: Any, visible_devices: str | None) -> None:
        self._nvml = nvml
        self._visible_devices = visible_devices
        first = (visible_devices or "0").split(",")[0].strip()
        try:
            nvml.nvmlInit()
            if first.isdigit():
                self._card = nvml.nvmlDeviceGetHandleByIndex(int(first))
            else:  # a card's UUID
                self._card = nvml.nvmlDeviceGetHandleByUUID(first)
        except nvml.NVMLError as exc:
            raise GpuReadError(f"the NVIDIA driver gives no card {first}: {exc}") from exc

    def read(self) -> GpuReading:
        nvml, card = self._nvml, self._card
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(card)
        except nvml.NVMLError as exc:
            raise GpuReadError(f"the NVIDIA driver does not answer: {exc}") from exc
        power_mw = self._optional(lambda: nvml.nvmlDeviceGetPowerUsage(card))
        return GpuReading(
            name=_text(self._optional(lambda: nvml.nvmlDeviceGetName(card))),
            driver=_text(self._optional(nvml.nvmlSystemGetDriverVersion)),
            total_bytes=memory.total,
            cuda_total_bytes=cuda_total_bytes(memory.total, self._visible_devices),
            used_bytes=memory.total
            - memory.free,  # what the driver itself keeps is not free either
            free_bytes=memory.free,
            utilization_percent=self._optional(
                lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu
            ),
            temperature_c=self._optional(
                lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
            ),
            power_w=None if power_mw is None else power_mw / 1000,
            processes=self._processes(),
        )

    def compute_capability(self) -> tuple[int, int] | None:
        """As (12, 0) for sm_120."""
        found = self._optional(lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(self._card))
        return None if found is None else (found[0], found[1])

    def cuda_version(self) -> tuple[int, int] | None:
        """The newest CUDA that the driver runs, as (13, 0)."""
        number = self._optional(self._nvml.nvmlSystemGetCudaDriverVersion)
        return None if number is None else (number // 1000, number % 1000 // 10)

    def _processes(self) -> tuple[GpuProcess, ...]:
        """The largest first."""
        nvml, card = self._nvml, self._card
        asked = (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
        )
        lists = [self._optional(partial(ask, card)) or [] for ask in asked]
        found = {p.pid: p for processes in lists for p in processes}
        processes = [
            GpuProcess(p.pid, self._process_name(p.pid), p.usedGpuMemory) for p in found.values()
        ]
        return tuple(sorted(processes, key=lambda p: -(p.used_bytes or 0)))

    def _process_name(self, pid: int) -> str:
        return _text(self._optional(lambda: self._nvml.nvmlSystemGetProcessName(pid))) or "unknown"

    def _optional(self, ask: Callable[[], _T]) -> _T | None:
        """Some cards, and WSL2, do not answer every question."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None


class PatientReader:
    """The reader of a real card. A driver that has lost its card can keep a call for ever: each
    method raises GpuReadError after some seconds, and while a call is kept no other is made."""

    def __init__(self, nvml: Any, visible_devices: str | None) -> None:
        self._reader = _answer(lambda: NvmlReader(nvml, visible_devices))

    def read(self) -> GpuReading:
        return _answer(self._reader.read)

    def compute_capability(self) -> tuple[int, int] | None:
        return _answer(self._reader.compute_capability)

    def cuda_version(self) -> tuple[int, int] | None:
        return _answer(self._reader.cuda_version)


def _answer(ask: Callable[[], _T]) -> _T:
    """What `ask` returns or raises, asked in a thread that no end of this process waits for."""
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as exc:  # noqa: BLE001  it is raised where the answer is awaited
            answer.set_exception(exc)
        finally:
            _asking.release()

    if _asking.acquire(timeout=_ANSWER_S):
        threading.Thread(target=run, name="nvml", daemon=True).start()
        try:
            return answer.result(_ANSWER_S)
        except TimeoutError:
            pass
    raise GpuReadError(f"the NVIDIA driver has not answered for {_ANSWER_S:.0f} s")


def open_nvml(visible_devices: str | None) -> PatientReader:
    """The reader of a real card.

    Raises:
        GpuReadError: the Python package, the driver's library or the card is not there, or the
            driver does not answer.
    """
    try:
        import pynvml
    except ImportError as exc:
        raise GpuReadError("the package nvidia-ml-py is not installed") from exc
    return PatientReader(pynvml, visible_devices)


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
