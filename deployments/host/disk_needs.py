"""Finds what the disks lack: room, and the kind of file system that a folder needs."""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deployments.host.filesystems import MOUNTS, is_slow_filesystem, is_windows_disk
from deployments.host.needs import Need

_GB = 10**9
# What pip downloads, once into its cache and once into TMPDIR, and what .venv then takes.
_DOWNLOAD_BYTES = {"gpu": 4_500_000_000, "cpu": 1_300_000_000}
_INSTALLED_BYTES = {"gpu": 9_500_000_000, "cpu": 4_300_000_000}
_FIRST_MODEL_BYTES = 10 * _GB  # Qwen2.5-14B-Instruct-AWQ


def install_needs(device: str, venv: Path, environ: Mapping[str, str]) -> Iterator[Need]:
    """Room on the disks for the packages of `device`, gpu or cpu, and for the first model."""
    download, installed = _DOWNLOAD_BYTES[device], _INSTALLED_BYTES[device]
    hub, pip = hub_cache(environ), _pip_cache(environ)
    packages = _by_disk(
        [(venv, installed), (pip, download), (Path(tempfile.gettempdir()), download)]
    )
    for path, num_bytes in packages:
        if _free_bytes(path) < num_bytes:
            yield Need(
                "disk",
                f"the disk of {path} has {_free_bytes(path) / _GB:.1f} GB free, and installing the "
                f"packages takes {num_bytes / _GB:.1f} GB there",
                "free some space, or set PIP_CACHE_DIR and TMPDIR to folders on another disk",
            )
            return
    if device == "gpu" and not any(hub.glob("models--*")):
        after = _by_disk([(hub, _FIRST_MODEL_BYTES), (venv, installed), (pip, download)])
        path, num_bytes = after[0]
        if _free_bytes(path) < num_bytes:
            yield Need(
                "disk",
                f"the disk of {path} has {_free_bytes(path) / _GB:.1f} GB free, and the first "
                f"model with what else goes there takes {num_bytes / _GB:.1f} GB",
                "free some space, or set HF_HOME to a folder on another disk",
                is_wall=False,
            )


def _by_disk(wanted: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """For each disk the first folder on it, and the sum of what its folders take."""
    disks: dict[int, tuple[Path, int]] = {}
    for path, num_bytes in wanted:
        disk = _existing(path).stat().st_dev
        first, before = disks.get(disk, (path, 0))
        disks[disk] = (first, before + num_bytes)
    return list(disks.values())


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face checkpoints lie, as huggingface_hub has it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = environ.get("HF_HOME") or f"{_cache(environ)}/huggingface"
    return Path(home).expanduser() / "hub"


def _pip_cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PIP_CACHE_DIR") or f"{_cache(environ)}/pip").expanduser()


def _cache(environ: Mapping[str, str]) -> str:
    return environ.get("XDG_CACHE_HOME") or "~/.cache"


def home_needs(home: Path, mounts: Path = MOUNTS) -> Iterator[Need]:
    """A home folder in which the engines' sockets and the locks work."""
    if is_windows_disk(home, mounts):
        yield Need(
            "disk",
            f"{home} lies on a disk of Windows, where Unix sockets and file locks do not work",
            "set LLM_BACKEND_HOME=~/.cache/llm-backend, which lies on Linux's own disk",
        )


def slow_places(venv: Path, environ: Mapping[str, str], mounts: Path = MOUNTS) -> Iterator[Need]:
    """Warnings of checkpoints and packages on a disk that Windows or another host shares."""
    hub = hub_cache(environ)
    if is_slow_filesystem(hub, mounts):
        yield Need(
            "disk",
            f"the checkpoints lie in {hub}, on a disk that Linux shares with its host and reads at "
            "100 to 250 MB/s: a switch then takes a minute and more",
            "set HF_HOME=~/.cache/huggingface, and copy what is there with: llm-backend pull "
            f"--from {hub}",
            is_wall=False,
        )
    if is_slow_filesystem(venv, mounts):
        yield Need(
            "disk",
            f"the packages lie in {venv}, on a disk that Linux shares with its host: each start "
            "takes minutes",
            "move the project to Linux's own disk, such as ~/llm-backend, and run make there",
            is_wall=False,
        )
