"""Copies a checkpoint from a folder into the hub's cache on this machine, without the network.

The folder is a Hugging Face cache, as on another disk or on Windows, or holds the checkpoint's
files. Each copy is compared with the hash that the folder names for the file: in our manifest, as
the name of the blob, or in the notes of `hf download --local-dir`. Where it names none, the file is
hashed there first.
"""

import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from deployments.checkpoints.hub import Hub, PullError
from deployments.checkpoints.manifest import SERVED_FILES, PulledFile, load_manifest
from deployments.settings import ModelSpec

_CHUNK_BYTES = 8 << 20
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # as the hub names a file's content
_COMMIT = re.compile(r"[0-9a-f]{40}")


class FolderHub(Hub):
    """Stands for the hub, with the one revision of `spec`'s checkpoint that lies in `source`.

    Raises:
        PullError: the checkpoint is not there, or not at the revision that the model's file names.
    """

    listing, verb = "the folder", "copy"

    def __init__(self, source: Path, spec: ModelSpec, cache: Path | None = None) -> None:
        super().__init__(cache=cache)
        self._source = _checkpoint_in(source.expanduser(), spec)
        self._files = _files_of(self._source)
        self._commit = _commit_of(self._source, self._files)
        wanted = spec.revision or ""
        if _COMMIT.fullmatch(wanted) and wanted != self._commit:
            raise PullError(
                f"configs/models/{spec.name}.yaml names revision {wanted[:12]} of "
                f"{spec.checkpoint}, and {source} does not hold it"
            )

    def newest(self, repo: str, branch: str) -> str:
        return self._commit

    def files(self, repo: str, commit: str) -> tuple[PulledFile, ...]:
        return self._files

    def _download_rest(self, url: str, file: PulledFile, part: BinaryIO) -> bool:
        have = part.seek(0, os.SEEK_END)
        if have > file.size_bytes:
            have = part.truncate(0)
        with (
            (self._source / file.path).open("rb") as source,
            _bar(file.path, file.size_bytes, have) as bar,
        ):
            source.seek(have)
            while chunk := source.read(_CHUNK_BYTES):
                part.write(chunk)
                bar.update(len(chunk))
        part.flush()
        return have > 0


def _checkpoint_in(source: Path, spec: ModelSpec) -> Path:
    """The folder below `source` that has the checkpoint's files."""
    name = repo_folder_name(repo_id=spec.checkpoint, repo_type="model")
    for repo in (source, source / name, source / "hub" / name):
        snapshots = repo / "snapshots"
        if repo.name == name and snapshots.is_dir():
            return _snapshot_in(repo, spec)
    if (source / "config.json").is_file():
        return source
    raise PullError(
        f"{source} holds neither {name}, as a Hugging Face cache does, nor a config.json"
    )


def _snapshot_in(repo: Path, spec: ModelSpec) -> Path:
    """The snapshot of the wanted revision, or else the only one."""
    for branch in (spec.revision or "main", "main"):
        reference = repo / "refs" / branch
        commit = reference.read_text().strip() if reference.is_file() else branch
        if (repo / "snapshots" / commit).is_dir():
            return repo / "snapshots" / commit
    found = [folder for folder in (repo / "snapshots").iterdir() if folder.is_dir()]
    if len(found) != 1:
        raise PullError(
            f"{repo} holds {len(found)} revisions; name one of the folders in {repo / 'snapshots'}"
        )
    return found[0]


def _files_of(source: Path) -> tuple[PulledFile, ...]:
    """All files of the checkpoint; hidden ones are other programs' notes."""
    manifest = load_manifest(source)
    known = {file.path: file.digest for file in manifest.files} if manifest else {}
    files = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            is_served = any(fnmatch(name, pattern) for pattern in SERVED_FILES)
            digest = known.get(name) or _digest_beside(source, path)
            if is_served and not digest:
                digest = _hash(path, name)
            files.append(PulledFile(name, path.stat().st_size, digest))
    return tuple(files)


def _hash(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, _bar(f"hashing {name}", path.stat().st_size) as bar:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _bar(name: str, num_bytes: int, done_bytes: int = 0) -> tqdm:
    return tqdm(  # type: ignore[no-untyped-call]
        total=num_bytes, initial=done_bytes, unit="B", unit_scale=True, desc=name
    )


def _digest_beside(source: Path, path: Path) -> str:
    """The hash that the folder names for a file; empty where it names none."""
    if _DIGEST.fullmatch(path.resolve().name):
        return path.resolve().name
    notes = _notes_of(source, path)
    return notes[1] if len(notes) > 1 and _DIGEST.fullmatch(notes[1]) else ""


def _notes_of(source: Path, path: Path) -> list[str]:
    """What `hf download --local-dir` notes of a file: its commit, its hash, the time."""
    name = path.relative_to(source).as_posix()
    try:
        return (source / f".cache/huggingface/download/{name}.metadata").read_text().split()
    except OSError:
        return []


def _commit_of(source: Path, files: tuple[PulledFile, ...]) -> str:
    """The revision, if the folder names it; else a name that is made of the files' hashes."""
    if _COMMIT.fullmatch(source.name):
        return source.name
    notes = _notes_of(source, source / "config.json")
    if notes and _COMMIT.fullmatch(notes[0]):
        return notes[0]
    names = "".join(f"{file.path} {file.digest}\n" for file in files)
    return hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest()
