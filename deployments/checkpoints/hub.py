"""Lists, downloads and links files of the Hugging Face hub in its cache on this machine.

The cache's layout is the hub's own (`blobs/<digest>`, `snapshots/<commit>/<path>` as links,
`refs/<branch>`), so checkpoints from other programs are found. This module downloads the blobs
itself: `snapshot_download` of huggingface_hub 2 starts a file again after its process was ended,
which loses up to 4 GB of a model in three files. A file enters the cache only if its hash is right.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from deployments.checkpoints.manifest import PulledFile, size_text
from deployments.host.files import write_whole

_ANSWER_TIMEOUT_S = 20.0  # for the first question; without one a silent network holds for minutes


class PullError(Exception):
    """Why a checkpoint was not pulled; the text is for the user."""


class Hub:
    """The hub at `endpoint` and the cache in `cache`. The defaults come from the environment:
    `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`."""

    listing = "the hub's listing"  # of sizes and hashes
    verb = "download"

    def __init__(self, endpoint: str | None = None, cache: Path | None = None) -> None:
        self.cache = cache or Path(huggingface_hub.constants.HF_HUB_CACHE)
        self._endpoint = endpoint
        self._api = HfApi(endpoint=endpoint)

    # --- listings from the hub ---

    def newest(self, repo: str, branch: str) -> str:
        """The newest commit of `branch`. Raises PullError."""
        with _explained(repo):
            commit = self._api.model_info(repo, revision=branch, timeout=_ANSWER_TIMEOUT_S).sha
        if not commit:
            raise PullError(f"the hub gives no commit for the branch {branch} of {repo}")
        return commit

    def files(self, repo: str, commit: str) -> tuple[PulledFile, ...]:
        """All files of a revision, also those that no engine reads. Raises PullError."""
        with _explained(repo):
            entries = list(self._api.list_repo_tree(repo, revision=commit, recursive=True))
        return tuple(
            PulledFile(f.path, f.lfs.size, f.lfs.sha256)
            if f.lfs
            else PulledFile(f.path, f.size, f.blob_id)
            for f in entries
            if isinstance(f, RepoFile)
        )

    # --- the cache on this machine ---

    def pinned(self, repo: str, branch: str) -> str | None:
        """The commit of `branch` that was pulled last."""
        try:
            return self._ref(repo, branch).read_text().strip() or None
        except OSError:
            return None

    def pin(self, repo: str, branch: str, commit: str) -> None:
        """Make `commit` the one that loads of `branch` use from now on."""
        path = self._ref(repo, branch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, commit)

    def snapshot(self, repo: str, commit: str) -> Path:
        """The folder for a revision's files; it may not exist yet."""
        return self._folder(repo) / "snapshots" / commit

    def blob(self, repo: str, file: PulledFile) -> Path:
        """The path for a file's content; it may not exist yet."""
        return self._folder(repo) / "blobs" / file.digest

    def free_bytes(self) -> int:
        """Free bytes on the cache's disk."""
        self.cache.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.cache).free

    def left_to_download(self, repo: str, file: PulledFile) -> int:
        """Bytes of `file` yet to download, without those that an interrupted pull has left."""
        if file.is_whole(self.blob(repo, file)):
            return 0
        part = _part(self.blob(repo, file))
        have = part.stat().st_size if part.is_file() else 0
        return file.size_bytes - have if have <= file.size_bytes else file.size_bytes

    # --- downloading ---

    def download(self, repo: str, commit: str, file: PulledFile) -> None:
        """Download one file's content into the cache, going on where an earlier pull has ended.

        Raises:
            PullError: the download failed, or the content's hash is not the listed one.
        """
        blob = self.blob(repo, file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repo, file.path, revision=commit, endpoint=self._endpoint)
        with _locked_part(blob, file) as part, _explained(repo):
            was_begun = self._download_rest(url, file, part)
            if was_begun and not file.has_digest(_part(blob)):
                part.truncate(0)  # the bytes of the earlier pull may have been damaged
                self._download_rest(url, file, part)
            if not file.has_digest(_part(blob)):
                _part(blob).unlink()
                raise PullError(
                    f"the hash of {file.path} of {repo} is not the one in {self.listing}. The file "
                    "was deleted: run the command again; if this happens again, do not use this "
                    "checkpoint"
                )
            _part(blob).replace(blob)

    def _download_rest(self, url: str, file: PulledFile, part: BinaryIO) -> bool:
        """Download the missing bytes into `part`; returns whether it had bytes already."""
        have = part.seek(0, os.SEEK_END)
        if have > file.size_bytes:
            have = part.truncate(0)
        http_get(
            url,
            part,
            resume_size=have,
            headers=build_hf_headers(),
            expected_size=file.size_bytes,
            displayed_filename=file.path,
        )
        part.flush()
        return have > 0

    def link(self, repo: str, commit: str, files: tuple[PulledFile, ...]) -> Path:
        """Make the snapshot's folder with links to blobs in the cache. Raises PullError.

        Not by `snapshot_download`, which asks the hub for the revision each time.
        """
        folder = self.snapshot(repo, commit)
        with _explained(repo):
            for file in files:
                path = folder / file.path
                target = os.path.relpath(self.blob(repo, file), path.parent)
                if not path.is_symlink() or os.readlink(path) != target:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.unlink(missing_ok=True)
                    path.symlink_to(target)
        return folder

    def forget(self, repo: str, commit: str, file: PulledFile) -> None:
        """Remove a damaged file from the cache."""
        (self.snapshot(repo, commit) / file.path).unlink(missing_ok=True)
        self.blob(repo, file).unlink(missing_ok=True)

    def _folder(self, repo: str) -> Path:
        return self.cache / repo_folder_name(repo_id=repo, repo_type="model")

    def _ref(self, repo: str, branch: str) -> Path:
        return self._folder(repo) / "refs" / branch


def _part(blob: Path) -> Path:
    return blob.with_name(
        f"{blob.name}.incomplete"
    )  # `hf cache prune` removes files with this ending


@contextmanager
def _locked_part(blob: Path, file: PulledFile) -> Iterator[BinaryIO]:
    with _part(blob).open("ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise PullError(
                f"another `llm-backend pull` is downloading {file.path}; wait for it to end"
            ) from exc
        yield part


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub's library raises into a PullError with the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as exc:
        raise PullError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set and forbids downloads. Unset it for "
            "this command; serving stays offline without it"
        ) from exc
    except GatedRepoError as exc:
        raise PullError(
            f"the licence of {repo} must be accepted on its page on the hub; then log in with "
            "`hf auth login` and run this command again"
        ) from exc
    except RevisionNotFoundError as exc:
        raise PullError(
            f"{repo} does not have the revision that configs/models names; correct it there"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise PullError(
            f"the hub has no checkpoint {repo}, or it is private: correct its name in "
            "configs/models, or log in with `hf auth login`"
        ) from exc
    except HfHubHTTPError as exc:
        raise PullError(
            f"the hub answered with status {exc.response.status_code} for {repo}"
        ) from exc
    except LocalEntryNotFoundError as exc:
        raise PullError(
            f"the hub did not give all files of {repo}; run this command again to go on"
        ) from exc
    except OSError as exc:
        raise PullError(
            f"{repo} could not be pulled: {exc}; run this command again to go on"
        ) from exc
    except Exception as exc:  # huggingface_hub does not document the errors of its HTTP library
        if not type(exc).__module__.startswith(("httpx", "httpcore")):
            raise
        raise PullError(
            f"the hub cannot be reached ({type(exc).__name__}); run this command again to go on"
        ) from exc


def room_needed(left_bytes: int, free_bytes: int, cache: Path) -> str | None:
    """An error text if the disk has not enough room for the download; else None."""
    margin = 2 * 10**9  # logs, compile caches
    if left_bytes + margin <= free_bytes:
        return None
    return (
        f"the download needs {size_text(left_bytes)} and {size_text(margin)} to spare, and "
        f"{cache} has {size_text(free_bytes)} free; make room, or set HF_HOME to another disk"
    )
