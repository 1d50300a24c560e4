"""Identifies the weights and settings that a target's answers come from, without loading it."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from deployments.checkpoints import checkpoint
from deployments.model_server import golden
from deployments.settings import ModelSpec, Settings

_Files = tuple[tuple[str, int, int], ...]  # name, bytes and time of change in ns


@dataclass(frozen=True)
class _Known:
    epoch: int | None
    files: _Files
    fingerprint: str


class Fingerprints:
    """Fingerprints of targets, made from their files when first asked for, and kept.

    A target that serves keeps the fingerprint it was first seen with in that epoch: its engine has
    read the files, whatever becomes of them. For any other the files are looked at each
    time, since a load would read them as they are now.
    """

    def __init__(self, settings: Settings) -> None:
        self._home, self._device = settings.home, settings.device
        self._targets = settings.targets
        self._known: dict[str, _Known] = {}
        self._locks = {name: asyncio.Lock() for name in self._targets}

    async def of(self, target: str, epoch: int | None) -> str | None:
        """None where the checkpoint cannot be read. `epoch`: in which it serves, if it does."""
        known = self._known.get(target)
        if known and epoch is not None and known.epoch == epoch:
            return known.fingerprint
        async with self._locks[target]:
            try:
                found = await asyncio.to_thread(self._look, target, epoch, self._known.get(target))
            except (checkpoint.CheckpointError, OSError, ValueError):
                return None
            self._known[target] = found
            return found.fingerprint

    def _look(self, target: str, epoch: int | None, known: _Known | None) -> _Known:
        spec = self._targets[target]
        folder = checkpoint.locate(spec, self._home)
        files = _files(folder)
        if known and known.files == files:
            return _Known(epoch, files, known.fingerprint)
        return _Known(epoch, files, self._make(spec, folder, files))

    def _make(self, spec: ModelSpec, folder: Path, files: _Files) -> str:
        """The golden answer's fingerprint knows no weights but by their header; their files' times
        tell other weights of the same shape."""
        settings = golden.fingerprint(spec, folder, self._device)
        return hashlib.sha256(f"{settings} {files}".encode()).hexdigest()


def _files(folder: Path) -> _Files:
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
