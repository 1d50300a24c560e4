"""The facts about a machine, which are all gathered before any check, and the checks' findings."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deployments.host.needs import Need
from deployments.memory.nvml import GpuReading
from deployments.memory.plan import Plan
from deployments.settings import Settings
from serve_app.launcher.private import Exposure


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"  # the server starts, but slower, or with fewer models or less protection
    PROBLEM = "problem"  # the server does not start, or does not work as it should


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    text: str
    remedy: str | None = None  # for a warning or problem: a command, or what to change


@dataclass(frozen=True)
class Card:
    """The GPU that the server would use."""

    reading: GpuReading
    capability: tuple[int, int] | None  # (12, 0) is sm_120
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the driver runs


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch, read by a separate process."""

    version: str
    cuda: str | None  # the CUDA version it is built for; None for the CPU
    archs: tuple[str, ...]  # the architectures it has kernels for, as sm_120, compute_120


@dataclass(frozen=True)
class Disk:
    """A folder that the server or its libraries write to."""

    purpose: str
    path: Path
    free_bytes: int
    filesystem: str | None  # as ext4, tmpfs; None if unknown
    can_write: bool


@dataclass(frozen=True)
class Port:
    """A TCP port that a part of this project uses."""

    number: int
    purpose: str
    is_needed: bool  # the server does not start without it
    holder: str | None = None  # the program that uses it now, as `prometheus (process 17)`
    is_backend: bool = False  # the holder answers like a server of this project


@dataclass(frozen=True)
class Weights:
    """The checkpoint behind one model's name."""

    model: str
    checkpoint: str
    problem: str | None  # why it cannot be loaded; None if it is complete
    size_bytes: int = 0  # of the weights


@dataclass(frozen=True)
class HostFacts:
    """Everything that the checks read; they read nothing else."""

    settings: Settings | None  # None if they cannot be loaded
    settings_problem: str | None  # why they cannot be loaded
    host: str  # the address that the server binds
    card: Card | None
    card_problem: str | None  # why the card cannot be read
    has_nvidia_hardware: bool  # on the PCI bus, or given by WSL2, with a driver or not
    torch: Torch | None
    torch_problem: str | None  # why PyTorch cannot be imported
    packages: dict[str, str]  # the relevant installed packages -> version
    environment: dict[str, str]  # the relevant variables that are set
    is_wsl2: bool
    has_nvcc: bool
    memory_total_bytes: int
    memory_available_bytes: int
    card_remedy: str | None = None  # for `card_problem`
    needs: tuple[Need, ...] = ()  # what a start would refuse or note
    disks: tuple[Disk, ...] = ()
    ports: tuple[Port, ...] = ()
    is_serving: bool = False  # a server runs on this home
    ray_address: str | None = None  # the cluster that RAY_ADDRESS names
    exposures: tuple[Exposure, ...] = ()
    weights: tuple[Weights, ...] = ()
    # Of all models whose shape is known, downloaded or not; on a card with what is free now, unless
    # the server runs.
    plans: tuple[Plan, ...] = ()
    fork_problem: str | None = None  # why `standby: auto` forks no engines

    @property
    def is_gpu_profile(self) -> bool:
        return self.settings is not None and self.settings.device == "cuda"
