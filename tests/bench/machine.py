"""The machine that the numbers are of."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

_BUSY = 0.5  # of the cores, as load average: above it others take part in what is measured


def describe() -> dict[str, Any]:
    """CPU, cores, memory, GPU, load average, and warnings where the machine is not at rest."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    about: dict[str, Any] = {
        "CPU": _cpu_name(),
        "cores": cores,
        "RAM": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": _gpu_name(),
        "load average at start": round(load, 2),
        "warnings": [],
    }
    if load > _BUSY * cores:
        about["warnings"].append(
            f"The load average was {load:.1f} on {cores} cores before anything was started: "
            "other programs took part in these numbers."
        )
    return about


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu_name() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
