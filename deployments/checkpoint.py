"""Where a model's weights lie, and whether they are whole: checked before anything is drained."""

import json
import struct
from pathlib import Path

from deployments.residency import Problem
from serve_app.settings import ModelSpec

_DEMO = "demo/"


class CheckpointProblem(Exception):
    """The weights are not there, not whole, or do not fit."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def locate(spec: ModelSpec, home: Path) -> Path:
    """The folder of `spec`'s checkpoint on this machine.

    `demo/<name>` and absolute paths are folders; anything else is a Hugging Face name, looked up in
    the hub's cache without using the network.

    Raises:
        CheckpointProblem: there is no such folder; the message says how to get it.
    """
    if spec.checkpoint.startswith(_DEMO):
        folder = home / "models" / spec.checkpoint.removeprefix(_DEMO)
        remedy = "make models"
    elif Path(spec.checkpoint).is_absolute():
        folder, remedy = Path(spec.checkpoint), "correct its path in configs/models"
    else:
        folder, remedy = _hub_folder(spec), f"hf download {spec.checkpoint}"
    if not (folder / "config.json").is_file():
        raise CheckpointProblem(
            Problem(
                "checkpoint_missing",
                f"the weights of {spec.name} ({spec.checkpoint}) are not on this machine; "
                f"get them with: {remedy}",
            )
        )
    return folder


def check(spec: ModelSpec, home: Path) -> Path:
    """`locate`, and compare every weights file with its own header and the index.

    Raises:
        CheckpointProblem: a file is missing, cut short or not a safetensors file.
    """
    folder = locate(spec, home)
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as exc:
        raise _broken(spec, "config.json is not JSON") from exc
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise _broken(spec, "the tokenizer's files are missing")
    for name in _weight_files(spec, folder):
        _check_safetensors(spec, folder / name)
    return folder


def tensor_bytes(folder: Path) -> int:
    """What the tensors of a whole checkpoint take, as the headers of its files say."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
        total += path.stat().st_size - 8 - header_bytes
    return total


def size_bytes(spec: ModelSpec, home: Path) -> int | None:
    """What its weights take on disk; None where they are not here, or not whole."""
    try:
        folder = locate(spec, home)
        return sum((folder / name).stat().st_size for name in _weight_files(spec, folder))
    except (CheckpointProblem, OSError):
        return None


def _hub_folder(spec: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(spec.checkpoint, revision=spec.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return Path("/nonexistent")


def _weight_files(spec: ModelSpec, folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _broken(spec, "the index of its weights can not be read") from exc
    if not names:
        raise _broken(spec, "the index of its weights names no file")
    return names


def _check_safetensors(spec: ModelSpec, path: Path) -> None:
    """A safetensors file: 8 bytes of header length, a JSON header, data to its last offset."""
    try:
        actual = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > actual - 8:  # before it is believed: `read` makes room for as much
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(header_bytes))
        last = max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
        expected = 8 + header_bytes + last
    except FileNotFoundError as exc:
        raise _broken(spec, f"{path.name} is missing") from exc
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError) as exc:
        raise _broken(spec, f"{path.name} is not a safetensors file") from exc
    if actual != expected:
        raise _broken(spec, f"{path.name} has {actual} bytes where {expected} belong")


def _broken(spec: ModelSpec, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        Problem("checkpoint_broken", f"the weights of {spec.name} are not whole: {what}")
    )
