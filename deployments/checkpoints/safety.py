"""Refuses checkpoints that contain code, pickles, or links out of their folder.

Engines never run a checkpoint's code, so such a checkpoint would not work as its author intended. A
pickle runs code when it is read. A link out of the folder makes the engine read a file that was not
pulled.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def danger_in_names(names: Iterable[str]) -> str | None:
    """A sentence about the first pickle or path out of the folder among the names; else None."""
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"the path {name!r} leads out of its folder"
        if path.suffix.lower() in _PICKLES:
            return f"{name} is a pickle, which runs code when it is read"
    return None


def danger_in_config(name: str, text: bytes) -> str | None:
    """A sentence about code that the JSON file `name` asks for; None if none, or if not JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if _has_key(value, "auto_map"):
        return f"{name} asks for code in the checkpoint to be run (auto_map)"
    return None


def is_config(name: str) -> bool:
    """Whether transformers looks for `auto_map` in the file."""
    return PurePosixPath(name).name.endswith("config.json")


def danger_in_folder(folder: Path, roots: Sequence[Path]) -> str | None:
    """A sentence about the first forbidden file in `folder`; else None. A link may only lead to a
    path below one of `roots`."""
    allowed = [root.resolve() for root in roots]
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    for path in files:
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in allowed):
            return f"{path.relative_to(folder)} is a link out of its folder"
    names = {path.relative_to(folder).as_posix(): path for path in files}
    found = danger_in_names(names)
    for name, path in names.items():
        if not found and is_config(name) and path.is_file():
            found = danger_in_config(name, path.read_bytes())
    return found


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return bool(value.get(key)) or any(_has_key(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_has_key(inner, key) for inner in value)
