"""Finds a model's weights, and checks that they are whole and safe.

A switch makes these checks before it drains the old model.
"""

import json
from pathlib import Path

from deployments.checkpoints.manifest import SERVED_FILES, load_manifest, weights_among
from deployments.checkpoints.safety import danger_in_folder
from deployments.residency import Problem
from deployments.settings import ModelSpec, paths

_DEMO = "demo/"
_LENGTH_BYTES = 8  # a safetensors file begins with its header's length, little-endian


class CheckpointError(Exception):
    """The weights are missing, damaged or unsafe, or do not fit into memory."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def is_on_hub(spec: ModelSpec) -> bool:
    """Whether the checkpoint is a name on a Hugging Face hub, not a folder."""
    return not spec.checkpoint.startswith(_DEMO) and not Path(spec.checkpoint).is_absolute()


def locate(spec: ModelSpec, home: Path) -> Path:
    """The folder of `spec`'s checkpoint on this machine.

    `demo/<name>` and absolute paths are folders. Any other text is a Hugging Face name, which is
    looked up in the hub's cache without the network.

    Raises:
        CheckpointError: the folder does not exist (the message says how to get it), or it holds
            code, pickles or links out of it.
    """
    roots: list[Path] = []
    if spec.checkpoint.startswith(_DEMO):
        folder = home / paths.MODELS / spec.checkpoint.removeprefix(_DEMO)
        remedy = "make models"
    elif Path(spec.checkpoint).is_absolute():
        folder, remedy = Path(spec.checkpoint), "correct its path in configs/models"
    else:
        folder, remedy = _hub_folder(spec), f"llm-backend pull {spec.name}"
        roots = [
            folder.parent.parent,
            folder.parent.parent.parent,
        ]  # a snapshot holds links to blobs
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
    """Do `locate`, then compare every weights file with its header and the index, and the size of
    every pulled file with the manifest.

    Raises:
        CheckpointError: as `locate`, or a file is missing, cut short or not a safetensors file.
    """
    folder = locate(spec, home)
    manifest = load_manifest(folder) if is_on_hub(spec) else None
    for file in manifest.files if manifest else ():
        if not file.is_whole(folder / file.path):
            raise _broken(
                spec, f"{file.path} is missing, or its size is not that of the pulled file"
            )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        try:
            json.loads((folder / name).read_text())
        except FileNotFoundError:  # `locate` has checked the first; the others are optional
            continue
        except ValueError as exc:
            raise _broken(spec, f"{name} is not JSON") from exc
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise _broken(spec, "the tokenizer's files are missing")
    for name in _weight_files(spec, folder):
        _check_safetensors(spec, folder / name)
    return folder


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors of a whole checkpoint, by the headers of its files."""
    files = [folder / name for name in weights_among(path.name for path in folder.iterdir())]
    return sum(
        path.stat().st_size - _LENGTH_BYTES - len(safetensors_header(path)) for path in files
    )


def safetensors_header(path: Path) -> bytes:
    """The JSON header of a safetensors file; it follows eight bytes with its length.

    Raises:
        OSError, ValueError: the file cannot be read, or has no such header.
    """
    room = path.stat().st_size - _LENGTH_BYTES
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > room:  # checked first, because `read` allocates this many bytes
            raise ValueError(f"the header of {path.name} is longer than the file")
        return file.read(length)


def size_bytes(spec: ModelSpec, home: Path) -> int | None:
    """Bytes of the model's weights on disk; None if they are missing or damaged."""
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
    """Check that the file has a header, and data up to the header's last offset."""
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
        raise _broken(spec, f"{path.name} has {actual} bytes and should have {expected}")


def _broken(spec: ModelSpec, fault: str) -> CheckpointError:
    remedy = f"; repair them with: llm-backend pull {spec.name}" if is_on_hub(spec) else ""
    return CheckpointError(
        Problem("checkpoint_broken", f"the checkpoint of {spec.name} is damaged: {fault}{remedy}")
    )
