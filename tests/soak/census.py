"""What every process of a server holds, by its role, and what lies in its folders."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.server import Server
from tests.soak.growth import Series, stitched

# How a role's command line, or the title that it gave itself, begins; the first that fits.
_ROLES = {
    "ray::ServeReplica:llm-backend:Gateway": "gateway",
    "ray::ServeReplica:llm-backend:Switchboard": "switchboard",
    "ray::ServeReplica:llm-backend:": "model server",
    "ray::ServeController": "controller",
    "ray::": "other Ray workers",
    "VLLM::": "engine core",
    "llm-backend-engine": "engine",
    "llm-backend": "standby",
}
_PARTS = {  # of a command line
    "supervisor.py": "supervisor",
    "haproxy": "haproxy",
    "gcs_server": "Ray GCS",
    "raylet/raylet": "raylet",
    "dashboard/agent.py": "Ray agents",
    "runtime_env/agent": "Ray agents",
    "dashboard": "Ray dashboard",
    "log_monitor.py": "Ray log monitor",
    "monitor.py": "Ray monitor",
    "deployments.engine.forkserver": "standby",
    "llm-backend start": "launcher",
    "serve run": "serve run",
    "resource_tracker": "resource tracker",
}
# Each switch starts these anew. They are judged by their mean: is each larger than the one before?
REPLACED = {"model server", "engine", "engine core", "supervisor", "other Ray workers", "others"}
_NUMBER = re.compile(r"[0-9a-f-]*[0-9][0-9a-f-]*")
MEASURES = ("rss", "pss", "descriptors", "sockets", "threads")


@dataclass(frozen=True)
class Process:
    role: str
    life: str  # its number and when it began
    rss: int
    pss: int
    descriptors: int
    sockets: int
    threads: int


@dataclass(frozen=True)
class Sample:
    at_s: float  # since the run began
    num_engines: int
    processes: list[Process]
    files: dict[str, int]  # how many in each folder
    bytes: dict[str, int]
    connections: dict[str, int]  # TCP, by state
    resident: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def take(server: Server, folders: dict[str, Path], began: float, resident: str | None) -> Sample:
    engines = server.watch().engines()
    family = {*server.family(), *(process for engine in engines.values() for process in engine)}
    counted = {name: _files(folder) for name, folder in folders.items()}
    return Sample(
        round(time.monotonic() - began, 1),
        len(engines),  # not the processes by that name: a fork has its parent's for a moment
        [found for process in family if (found := _process(process))],
        {name: num for name, (num, _) in counted.items()},
        {name: size for name, (_, size) in counted.items()},
        _connections({process.pid for process in family}),
        resident,
    )


def role_of(line: str) -> str:
    """The role of a process by its command line."""
    for begin, role in _ROLES.items():
        if line.startswith(begin):
            return role
    return next((role for part, role in _PARTS.items() if part in line), "others")


def by_role(samples: list[Sample], measure: str, settle_s: float) -> dict[str, Series]:
    """Role -> what its processes hold together; of one that lives long, what each life adds; of
    those that are replaced, what one of them holds."""
    roles = sorted({process.role for sample in samples for process in sample.processes})
    return {role: _series(samples, role, measure, settle_s) for role in roles}


def numbers(samples: list[Sample]) -> dict[str, Series]:
    """Role -> how many processes it had."""
    roles = sorted({process.role for sample in samples for process in sample.processes})
    return {
        role: [(s.at_s, sum(p.role == role for p in s.processes)) for s in samples]
        for role in roles
    }


def _series(samples: list[Sample], role: str, measure: str, settle_s: float) -> Series:
    lives: dict[str, Series] = {}
    sums: Series = []
    means: Series = []
    for sample in samples:
        mine = [process for process in sample.processes if process.role == role]
        for process in mine:
            point = (sample.at_s, float(getattr(process, measure)))
            lives.setdefault(process.life, []).append(point)
        if mine:
            sums.append((sample.at_s, float(sum(getattr(p, measure) for p in mine))))
            means.append((sample.at_s, sums[-1][1] / len(mine)))
    if role in REPLACED:
        return means
    is_single = len(sums) == sum(map(len, lives.values()))
    return stitched(list(lives.values()), settle_s) if is_single else sums


def _process(process: psutil.Process) -> Process | None:
    """None of one that has just ended."""
    try:
        with process.oneshot():
            line = " ".join(process.cmdline())
            if not line:
                return None
            descriptors = list(_descriptors(process.pid))
            return Process(
                role_of(line),
                f"{process.pid}-{process.create_time():.2f}",
                process.memory_info().rss,
                _pss(process.pid),
                len(descriptors),
                sum(target.startswith("socket:") for target in descriptors),
                process.num_threads(),
            )
    except (psutil.Error, OSError):
        return None


def _descriptors(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            yield os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue


def _pss(pid: int) -> int:
    """Its memory, what it shares counted in parts: a forked engine shares the standby's."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def kinds(folder: Path) -> Counter[str]:
    """How many files of each name, numbers left out; to say which of them grew."""
    names = (name for _, _, names in os.walk(folder) for name in names)
    return Counter(_NUMBER.sub("#", name) for name in names)


def _files(folder: Path) -> tuple[int, int]:
    """How many files, sockets among them, and their bytes; links are not followed."""
    num = size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
            num += 1
    return num, size


def _connections(pids: set[int]) -> dict[str, int]:
    found = psutil.net_connections("tcp")
    return dict(Counter(c.status for c in found if c.pid in pids))
