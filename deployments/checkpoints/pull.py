"""Pulls a model's checkpoint at its pinned revision, whole and safe to load."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from deployments.checkpoints.hub import Hub, PullError, room_needed
from deployments.checkpoints.manifest import (
    OTHER_PROGRAMS,
    SERVED_FILES,
    Manifest,
    PulledFile,
    changes,
    load_manifest,
    size_text,
    weights_among,
)
from deployments.checkpoints.safety import (
    danger_in_config,
    danger_in_folder,
    danger_in_names,
    is_config,
)
from deployments.settings import ModelSpec

_COMMIT_LENGTH = 40
_KEPT = "llm-backend"  # a ref of this name keeps `hf cache prune` from removing the revision

Reporter = Callable[[str], None]


@dataclass(frozen=True)
class _Wanted:
    """One revision of one checkpoint."""

    model: str
    repo: str
    commit: str
    files: tuple[PulledFile, ...]


def pull(hub: Hub, spec: ModelSpec, say: Reporter, *, is_update: bool) -> Path:
    """Bring `spec`'s checkpoint onto this machine; returns its folder.

    The revision is the commit in the model's file. If the file has a branch or no revision, it is
    the commit that was pulled last, or the newest if none was pulled yet or with `is_update`. Files
    that are here already are read and hashed again.

    Raises:
        PullError: the pull failed, or the checkpoint is refused; the revision in use stays in use.
    """
    repo = spec.checkpoint
    branch = spec.revision or "main"
    is_fixed = _is_commit(branch)
    before = branch if is_fixed else hub.pinned(repo, branch)
    commit = before
    if commit is None or is_update:
        commit = hub.newest(repo, "main" if is_fixed else branch)
    known = load_manifest(hub.snapshot(repo, commit))
    files = known.files if known else served(repo, hub.files(repo, commit))
    folder = _bring(hub, _Wanted(spec.name, repo, commit, files), say)
    manifest = known or Manifest(repo, commit, datetime.now(UTC).isoformat("T", "seconds"), files)
    manifest.save(folder)
    say(f"{spec.name}: {_title(manifest)} is complete, and every hash is right")
    if before != commit:
        _say_changes(hub, repo, before, manifest, say)
    if is_fixed and commit != branch:
        say(
            f"{spec.name}: configs/models/{spec.name}.yaml has revision {branch[:12]}; to serve "
            f"the new one, set there: revision: {commit}"
        )
    elif not is_fixed:
        hub.pin(repo, branch, commit)
    else:
        hub.pin(repo, _KEPT, commit)
    return folder


def served(repo: str, files: tuple[PulledFile, ...]) -> tuple[PulledFile, ...]:
    """The files that an engine reads, of a checkpoint whose files may all be there.

    Raises:
        PullError: the checkpoint has unsafe files, or no weights that are loaded here.
    """
    files = tuple(file for file in files if not file.path.startswith(OTHER_PROGRAMS))
    danger = danger_in_names(file.path for file in files)
    if danger:
        raise PullError(f"{repo} is refused: {danger}")
    weights = weights_among(file.path for file in files)
    if not weights:
        raise PullError(f"{repo} is refused: it has no safetensors files")
    return tuple(
        f
        for f in files
        if f.path in weights
        or (
            not f.path.endswith(".safetensors")
            and any(fnmatch(f.path, pattern) for pattern in SERVED_FILES)
        )
    )


def _bring(hub: Hub, wanted: _Wanted, say: Reporter) -> Path:
    """Download the missing files, hash the others, and make the folder."""
    repo, commit, files = wanted.repo, wanted.commit, wanted.files
    for file in files:
        blob = hub.blob(repo, file)
        if blob.is_file() and not (file.is_whole(blob) and file.has_digest(blob)):
            say(f"{wanted.model}: {file.path} is damaged and will be downloaded again")
            hub.forget(repo, commit, file)
    left = {file: hub.left_to_download(repo, file) for file in files}
    left_bytes, free_bytes = sum(left.values()), hub.free_bytes()
    if left_bytes:
        say(
            f"{wanted.model}: {size_text(left_bytes)} of {repo} ({commit[:12]}) to {hub.verb} into "
            f"{hub.cache}, which has {size_text(free_bytes)} free"
        )
        problem = room_needed(left_bytes, free_bytes, hub.cache)
        if problem:
            raise PullError(problem)
    # The small files first: a refusal for their content saves gigabytes.
    for file in sorted(files, key=lambda file: (not is_config(file.path), file.size_bytes)):
        if not file.is_whole(hub.blob(repo, file)):
            hub.download(repo, commit, file)
        if is_config(file.path):
            danger = danger_in_config(file.path, hub.blob(repo, file).read_bytes())
            if danger:
                raise PullError(f"{repo} is refused: {danger}")
    return _link(hub, wanted)


def _link(hub: Hub, wanted: _Wanted) -> Path:
    folder = hub.link(wanted.repo, wanted.commit, wanted.files)
    for file in wanted.files:
        path = folder / file.path
        is_ours = path.resolve().name == file.digest  # hashed after its download, or just now
        if not file.is_whole(path) or not (is_ours or file.has_digest(path)):
            hub.forget(wanted.repo, wanted.commit, file)
            raise PullError(
                f"the hash of {file.path} of {wanted.repo} is not the one in {hub.listing}. The "
                "file was deleted: run the command again"
            )
    danger = danger_in_folder(folder, [hub.cache])
    if danger:
        raise PullError(f"{wanted.repo} is refused: {danger}")
    return folder


def _say_changes(hub: Hub, repo: str, before: str | None, new: Manifest, say: Reporter) -> None:
    if before is None:
        return
    old = load_manifest(hub.snapshot(repo, before))
    lines = changes(old.files, new.files) if old else []
    say(
        f"{repo}: {before[:12]} -> {new.commit[:12]}" + ("" if lines or not old else ": same files")
    )
    for line in lines:
        say(f"  {line}")
    if not old:
        say("  the changed files are not known: this command did not pull the old revision")
    say("  the old revision stays on the disk until you run `hf cache prune`")


def _title(manifest: Manifest) -> str:
    return f"{manifest.repo} ({manifest.commit[:12]}, {size_text(manifest.size_bytes)})"


def _is_commit(revision: str) -> bool:
    return len(revision) == _COMMIT_LENGTH and all(c in "0123456789abcdef" for c in revision)
