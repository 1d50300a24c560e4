"""Keeps what engines on a GPU reported of their memory, which corrects the plan's estimate.

vLLM measures at its first start with given settings, and logs what it found; a later start may
reuse the measurement (VLLM_ENABLE_STARTUP_PLAN) and log nothing. So it is kept in a small file.
"""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from deployments.host.files import write_whole
from deployments.memory.plan import GIB, Overhead
from deployments.settings import ModelSpec, paths

logger = logging.getLogger("llm_backend.engine_memory")

# Source: vllm 0.32.0, v1/worker/gpu_model_runner.py (load_model) and v1/worker/gpu_worker.py
# (determine_available_memory, compile_or_warm_up_model).
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB memory")
_KV_ROOM = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_LIMIT = re.compile(r"Desired GPU memory utilization is \([\d.]+, ([\d.]+) GiB\)")
_ROUNDING_GIB = 0.005  # of each
# What sizes the KV cache and leaves the overhead as it is: a start with less teaches for more.
_NOT_OVERHEAD = {"max_model_len", "gpu_memory_utilization"}


@dataclass(frozen=True)
class EngineReport:
    """What one start has measured."""

    limit_bytes: int
    weights_bytes: int
    kv_room_bytes: int

    @property
    def overhead_bytes(self) -> int:
        """What is neither weights nor KV cache.

        Rounded in its favour: the engine did start, and the plan should not deny it.
        """
        rounding_bytes = int(3 * _ROUNDING_GIB * GIB)
        return self.limit_bytes - self.weights_bytes - self.kv_room_bytes - rounding_bytes


def read_report(log: str) -> EngineReport | None:
    """The measurement in an engine's log; None where it made none."""
    found = [pattern.search(log) for pattern in (_LIMIT, _WEIGHTS, _KV_ROOM)]
    sizes = [int(float(match[1]) * GIB) for match in found if match]
    if len(sizes) != len(found):
        return None
    report = EngineReport(*sizes)
    return report if 0 < report.overhead_bytes < report.limit_bytes else None


def learn(spec: ModelSpec, log: str, home: Path) -> None:
    """Keep what the engine of `spec` has measured, if it did."""
    report = read_report(log)
    if report is None:
        return
    path = _record(spec, home)
    content = {"settings": _fingerprint(spec), "overhead_bytes": report.overhead_bytes}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, json.dumps(content))
    except OSError:  # a worse estimate is no reason not to serve
        logger.exception("could not keep %s", path)


def measured_overhead(spec: ModelSpec, home: Path) -> Overhead | None:
    """What an engine with the same settings has measured; None where none has."""
    try:
        kept = json.loads(_record(spec, home).read_text())
        if kept["settings"] == _fingerprint(spec) and type(kept["overhead_bytes"]) is int:
            return Overhead(kept["overhead_bytes"], "measured")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _record(spec: ModelSpec, home: Path) -> Path:
    return home / paths.overhead(spec.name, spec.task)


def _fingerprint(spec: ModelSpec) -> str:
    """Of everything the overhead depends on."""
    settings = spec.model_dump(
        mode="json",
        include={"checkpoint", "revision", "engine", "env", "task"},
        exclude={"engine": _NOT_OVERHEAD},
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
