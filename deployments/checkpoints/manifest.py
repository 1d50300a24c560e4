"""Records the files of a pulled checkpoint with their sizes and hashes, beside its snapshot."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.host.files import write_whole

# The files that an engine reads, and the licence. No other file is downloaded or looked for.
SERVED_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "LICENSE*", "NOTICE*"]

# Folders in which repositories keep the same weights for other programs: Llama's and gpt-oss's own
# code, Apple's Metal, ONNX. Nothing in them is downloaded, so what they hold does no harm.
OTHER_PROGRAMS = ("original/", "metal/", "onnx/", "openvino/")

_MISTRALS_OWN = "consolidated"  # the same tensors once more, for Mistral's own code
_SHA256_LENGTH = 64


@dataclass(frozen=True)
class PulledFile:
    """One file, as the hub lists it."""

    path: str
    size_bytes: int
    digest: str  # SHA-256 for large files, else git's SHA-1 of a blob: the hub gives no other

    def is_whole(self, at: Path) -> bool:
        """Whether the file at `at` has this size."""
        try:
            return at.stat().st_size == self.size_bytes
        except OSError:
            return False

    def has_digest(self, at: Path) -> bool:
        """Whether the file at `at` has this digest; reads the whole file."""
        if len(self.digest) == _SHA256_LENGTH:
            with at.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.digest
        content = at.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
        digest.update(content)
        return digest.hexdigest() == self.digest


def weights_among(names: Iterable[str]) -> list[str]:
    """The files that hold the weights which an engine loads, each tensor once."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    return [name for name in found if not name.startswith(_MISTRALS_OWN)] or found


@dataclass(frozen=True)
class Manifest:
    """The served files of one revision of a checkpoint."""

    repo: str
    commit: str
    pulled_at: str  # ISO 8601, UTC
    files: tuple[PulledFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def save(self, folder: Path) -> None:
        """Write the manifest beside the snapshot `folder` of a hub's cache."""
        path = _path_of(folder)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=1))


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a snapshot; None if another program pulled it, or it cannot be read."""
    try:
        raw = json.loads(_path_of(folder).read_text())
        files = tuple(PulledFile(**file) for file in raw.pop("files"))
        return Manifest(files=files, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def changes(old: Iterable[PulledFile], new: Iterable[PulledFile]) -> list[str]:
    """The files that differ between two revisions, one line each."""
    before, after = ({file.path: file for file in files} for files in (old, new))
    lines = []
    for path in sorted({*before, *after}):
        if path not in before:
            lines.append(f"+ {path} ({size_text(after[path].size_bytes)})")
        elif path not in after:
            lines.append(f"- {path}")
        elif before[path].digest != after[path].digest:
            sizes = [size_text(files[path].size_bytes) for files in (before, after)]
            lines.append(f"~ {path} ({' -> '.join(sizes)})")
    return lines


def size_text(num_bytes: float) -> str:
    """A size such as `9.98 GB`, in decimal units as on the hub's pages."""
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"


def _path_of(folder: Path) -> Path:
    """`models--Org--Name/llm-backend/<commit>.json`, for `…/snapshots/<commit>`."""
    return folder.parent.parent / "llm-backend" / f"{folder.name}.json"
