"""Identifies a process by more than its number, which the system uses again."""

import os
from pathlib import Path


def numbering() -> str:
    """Names the boot and the container within which a process number means one process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the 22nd field; the name may hold spaces
