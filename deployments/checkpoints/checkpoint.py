"""Finds a model's weights, and checks that they are whole and safe.

Checked before anything is drained.
"""

import json
from pathlib import Path

from deployments.checkpoints.manifest import SERVED_FILES, load_manifest, weights_among
from deployments.checkpoints.safety import danger_in_folder
from deployments.residency import Problem
from deployments.settings import ModelSpec, paths

_DEMO = "demo/"
_LENGTH_BYTES = 8  # of a safetensors header's length, little-endian


class CheckpointError(Exception):
    """The weights are not there, not whole, not to be loaded, or do not fit."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def is_on_hub(spec: ModelSpec) -> bool:
    """Whether the checkpoint is a name on a Hugging Face hub, and no folder."""
    return not spec.checkpoint.startswith(_DEMO) and not Path(spec.checkpoint).is_absolute()


def locate(spec: ModelSpec, home: Path) -> Path:
    """The folder of `spec`'s checkpoint on this machine.

    `demo/<name>` and absolute paths are folders; anything else is a Hugging Face name, looked up in
    the hub's cache without using the network.

    Raises:
        CheckpointError: there is no such folder, and the message says how to get it; or it holds
            what is never loaded: code of its own, pickles, links out of it.
    """
    roots: list[Path] = []
    if spec.checkpoint.startswith(_DEMO):
        folder = home / paths.MODELS / spec.checkpoint.removeprefix(_DEMO)
        remedy = "make models"
    elif Path(spec.checkpoint).is_absolute():
        folder, remedy = Path(spec.checkpoint), "correct its path in configs/models"
    else:
        folder, remedy = _hub_folder(spec), f"llm-backend pull {spec.name}"
        roots = [folder.parent.parent, folder.parent.parent.parent]  # a snapshot is links to blobs
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            Problem(
                "checkpoint_missing",
                f"the weights of {spec.name} ({spec.checkpoint}) are not on this machine; "
                f"get them with: {remedy}",
            )
        )
    danger = danger_in_folder(folder, roots or [folder])
    if danger:
        raise CheckpointError(
            Problem("checkpoint_unsafe", f"the checkpoint of {spec.name} is refused: {danger}")
        )
    return folder


def check(spec: ModelSpec, home: Path) -> Path:
    """`locate`, and compare every weights file with its own header and the index, and every file
    that was pulled with the size it had.

    Raises:
        CheckpointError: a file is missing, cut short or not a safetensors file.
    """
    folder = locate(spec, home)
    manifest = load_manifest(folder) if is_on_hub(spec) else None
    for file in manifest.files if manifest else ():
        if not file.is_whole(folder / file.path):
            raise _broken(
                spec, f"{file.path} is missing or has another size than it was pulled with"
            )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        try:
            json.loads((folder / name).read_text())
        except FileNotFoundError:  # of the first, `locate` has told; the others need not be there
            continue
        except ValueError as exc:
            raise _broken(spec, f"{name} is not JSON") from exc
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise _broken(spec, "the tokenizer's files are missing")
    for name in _weight_files(spec, folder):
        _check_safetensors(spec, folder / name)
    return folder


def tensor_bytes(folder: Path) -> int:
    """What the tensors of a whole checkpoint take, as the headers of its files say."""
    files = [folder / name for name in weights_among(path.name for path in folder.iterdir())]
    return sum(
        path.stat().st_size - _LENGTH_BYTES - len(safetensors_header(path)) for path in files
    )


def safetensors_header(path: Path) -> bytes:
    """The JSON that a safetensors file begins with, after eight bytes that tell its length.

    Raises:
        OSError, ValueError: it cannot be read, or has none.
    """
    room = path.stat().st_size - _LENGTH_BYTES
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > room:  # before it is believed: `read` makes room for as much
            raise ValueError(f"the header of {path.name} is longer than the file")
        return file.read(length)


def size_bytes(spec: ModelSpec, home: Path) -> int | None:
    """What its weights take on disk; None where they are not here, or not whole."""
    try:
        folder = locate(spec, home)
        return sum((folder / name).stat().st_size for name in _weight_files(spec, folder))
    except (CheckpointError, OSError):
        return None


def _hub_folder(spec: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                spec.checkpoint,
                revision=spec.revision,
                local_files_only=True,
                allow_patterns=SERVED_FILES,
            )
        )
    except IncompleteSnapshotError as exc:  # `check` says what is missing
        return Path(exc.snapshot_path)
    except LocalEntryNotFoundError:
        return Path("/nonexistent")


def _weight_files(spec: ModelSpec, folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _broken(spec, "the index of its weights cannot be read") from exc
    if not names:
        raise _broken(spec, "the index of its weights names no file")
    return names


def _check_safetensors(spec: ModelSpec, path: Path) -> None:
    """A safetensors file: its header, and data to its last offset."""
    try:
        actual = path.stat().st_size
        header = safetensors_header(path)
        tensors = json.loads(header)
        last = max(t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__")
        expected = _LENGTH_BYTES + len(header) + last
    except FileNotFoundError as exc:
        raise _broken(spec, f"{path.name} is missing") from exc
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise _broken(spec, f"{path.name} is not a safetensors file") from exc
    if actual != expected:
        raise _broken(spec, f"{path.name} has {actual} bytes where {expected} belong")


def _broken(spec: ModelSpec, what: str) -> CheckpointError:
    remedy = f"; mend them with: llm-backend pull {spec.name}" if is_on_hub(spec) else ""
    return CheckpointError(
        Problem("checkpoint_broken", f"the weights of {spec.name} are not whole: {what}{remedy}")
    )
