"""Refuses checkpoints with code of their own, pickles, or links out of their folder.

Engines never trust remote code, so such a checkpoint would not run as its author means it; a pickle
runs code when it is read; and a link out of the folder serves a file that was never pulled.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def danger_in_names(names: Iterable[str]) -> str | None:
    """The first pickle, or path that leads out of the folder, among a checkpoint's files."""
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"the path {name!r} leads out of its folder"
        if path.suffix.lower() in _PICKLES:
            return f"{name} is a pickle, which runs code when it is read"
    return None


def danger_in_config(name: str, text: bytes) -> str | None:
    """Remote code named in one of a checkpoint's JSON files; None if it is not JSON at all."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if _has_key(value, "auto_map"):
        return f"{name} asks for code of the checkpoint's own (auto_map)"
    return None


def is_config(name: str) -> bool:
    """Whether transformers looks for remote code in it."""
    return PurePosixPath(name).name.endswith("config.json")


def danger_in_folder(folder: Path, roots: Sequence[Path]) -> str | None:
    """What `folder` may not hold; a link may lead only to below one of `roots`."""
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
