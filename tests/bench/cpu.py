"""CPU time of a whole process tree."""

import time
from collections.abc import Callable, Iterable

import psutil

Roots = Callable[[], Iterable[psutil.Process]]


class CpuMeter:
    """CPU seconds since it was made, of all processes below `roots` that live at both ends."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._before = _times(roots())
        self._began = time.monotonic()

    def read(self) -> tuple[float, float]:
        """CPU seconds and wall seconds; a process that came meanwhile counts from its start."""
        after = _times(self._roots())
        used = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in after.items())
        return used, time.monotonic() - self._began


def _times(roots: Iterable[psutil.Process]) -> dict[int, float]:
    found: dict[int, float] = {}
    for root in roots:
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[process.pid] = times.user + times.system
    return found
