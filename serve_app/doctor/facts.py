"""The facts about this machine, and the findings that the checks make of them."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deployments.memory.nvml import GpuReading
from deployments.memory.plan import Plan
from deployments.settings import Settings
from serve_app.launcher.private import Exposure


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # it starts, with something less than it could have
    PROBLEM = "problem"  # it does not start, or not as it should


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    text: str
    remedy: str | None = None  # what to do; a command where there is one


@dataclass(frozen=True)
class Card:
    """The GPU that would be used."""

    reading: GpuReading
    capability: tuple[int, int] | None  # (12, 0) is sm_120
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the driver runs


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch, as a process of its own says."""

    version: str
    cuda: str | None  # what it is built for; None for the CPU
    archs: tuple[str, ...]  # as sm_120, compute_120


@dataclass(frozen=True)
class Disk:
    """A folder that something is written to."""

    purpose: str
    path: Path
    free_bytes: int
    filesystem: str | None  # as ext4, tmpfs; None where it is not known
    can_write: bool


@dataclass(frozen=True)
class Port:
    """A TCP port that something of ours listens on."""

    number: int
    purpose: str
    is_needed: bool  # nothing starts without it
    holder: str | None = None  # who listens there now, as `prometheus (process 17)`
    is_backend: bool = False  # and answers as a server of this project does


@dataclass(frozen=True)
class Weights:
    """The checkpoint behind one model's name."""

    model: str
    checkpoint: str
    problem: str | None  # why it cannot be loaded; None when it is present and whole
    size_bytes: int = 0  # of its weights


@dataclass(frozen=True)
class HostFacts:
    """Everything the checks look at; they look at nothing else."""

    settings: Settings | None  # None where they cannot be used
    settings_problem: str | None
    host: str  # the address that the server binds
    card: Card | None
    card_problem: str | None  # why there is none
    has_nvidia_hardware: bool  # on the PCI bus, or given by WSL2
    torch: Torch | None
    torch_problem: str | None
    packages: dict[str, str]  # those that matter, where installed -> version
    environment: dict[str, str]  # the variables that matter, where set
    is_wsl2: bool
    has_nvcc: bool
    memory_total_bytes: int
    memory_available_bytes: int
    disks: tuple[Disk, ...] = ()
    ports: tuple[Port, ...] = ()
    is_serving: bool = False  # a server of ours runs on this home
    ray_address: str | None = None  # of a cluster that RAY_ADDRESS names
    exposures: tuple[Exposure, ...] = ()
    weights: tuple[Weights, ...] = ()
    plans: tuple[Plan, ...] = ()  # of the models whose shape is known, here or not

    @property
    def is_gpu_profile(self) -> bool:
        return self.settings is not None and self.settings.device == "cuda"
