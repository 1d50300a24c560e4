"""Lists, downloads and links files of the Hugging Face hub in its cache on this machine.

The cache's layout is the hub's own (`blobs/<digest>`, `snapshots/<commit>/<path>` as links,
`refs/<branch>`), so checkpoints that are there already are found. Blobs are downloaded here and not
by `snapshot_download`, which since huggingface_hub 2 drops what an ended process has of a file: up
to 4 GB of a model in three files. Nothing enters the cache before its hash is right.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import HfApi, hf_hub_url, snapshot_download
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
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

from deployments.checkpoints.manifest import PulledFile, size_text
from deployments.host.files import write_whole

_ANSWER_TIMEOUT_S = 20.0  # for the first question; without one a silent network holds for minutes


class PullError(Exception):
    """Why a checkpoint was not pulled; the text is for the user."""


class Hub:
    """The hub at `endpoint`, and the cache in `cache`; by default as the environment says
    (`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`)."""

    def __init__(self, endpoint: str | None = None, cache: Path | None = None) -> None:
        self.cache = cache or Path(huggingface_hub.constants.HF_HUB_CACHE)
        self._endpoint = endpoint
        self._api = HfApi(endpoint=endpoint)

    # --- what the hub says ---

    def newest(self, repo: str, branch: str) -> str:
        """The commit that `branch` stands at. Raises PullError."""
        with _explained(repo):
            commit = self._api.model_info(repo, revision=branch, timeout=_ANSWER_TIMEOUT_S).sha
        if not commit:
            raise PullError(f"the hub names no revision of {repo}")
        return commit

    def files(self, repo: str, commit: str) -> tuple[PulledFile, ...]:
        """Every file of a revision, served or not. Raises PullError."""
        with _explained(repo):
            entries = list(self._api.list_repo_tree(repo, revision=commit, recursive=True))
        return tuple(
            PulledFile(f.path, f.lfs.size, f.lfs.sha256)
            if f.lfs
            else PulledFile(f.path, f.size, f.blob_id)
            for f in entries
            if isinstance(f, RepoFile)
        )

    # --- what is here ---

    def pinned(self, repo: str, branch: str) -> str | None:
        """The commit that `branch` stood at when it was last pulled."""
        try:
            return self._ref(repo, branch).read_text().strip() or None
        except OSError:
            return None

    def pin(self, repo: str, branch: str, commit: str) -> None:
        """Let `branch` mean `commit`, from the next load on."""
        path = self._ref(repo, branch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, commit)

    def snapshot(self, repo: str, commit: str) -> Path:
        """Where a revision's files lie, or will."""
        return self._folder(repo) / "snapshots" / commit

    def blob(self, repo: str, file: PulledFile) -> Path:
        """Where a file's content lies, or will."""
        return self._folder(repo) / "blobs" / file.digest

    def free_bytes(self) -> int:
        """Of the disk that the cache is on."""
        self.cache.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.cache).free

    def left_to_download(self, repo: str, file: PulledFile) -> int:
        """Bytes of `file` that are not here; what an interrupted pull has left counts."""
        if file.is_whole(self.blob(repo, file)):
            return 0
        part = _part(self.blob(repo, file))
        have = part.stat().st_size if part.is_file() else 0
        return file.size_bytes - have if have <= file.size_bytes else file.size_bytes

    # --- downloading ---

    def download(self, repo: str, commit: str, file: PulledFile) -> None:
        """Bring one file's content into the cache, going on where an earlier pull has ended.

        Raises:
            PullError: it could not be had, or is not what the listing says.
        """
        blob = self.blob(repo, file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repo, file.path, revision=commit, endpoint=self._endpoint)
        with _locked_part(blob, file) as part, _explained(repo):
            was_begun = self._download_rest(url, file, part)
            if was_begun and not file.has_digest(_part(blob)):
                part.truncate(0)  # what was there may have been the fault
                self._download_rest(url, file, part)
            if not file.has_digest(_part(blob)):
                _part(blob).unlink()
                raise PullError(
                    f"{file.path} of {repo} is not what the hub's listing says: its hash is "
                    "another. It was deleted; try again, and if it stays so, do not use it"
                )
            _part(blob).replace(blob)

    def _download_rest(self, url: str, file: PulledFile, part: BinaryIO) -> bool:
        """Returns whether there was something already."""
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
        """Make the snapshot's folder of blobs that are here. Raises PullError."""
        with _explained(repo):
            snapshot_download(
                repo,
                revision=commit,
                allow_patterns=[file.path for file in files],
                cache_dir=self.cache,
                endpoint=self._endpoint,
                tqdm_class=_NoBar,
            )
        return self.snapshot(repo, commit)

    def forget(self, repo: str, commit: str, file: PulledFile) -> None:
        """Remove a file that is not what it should be."""
        (self.snapshot(repo, commit) / file.path).unlink(missing_ok=True)
        self.blob(repo, file).unlink(missing_ok=True)

    def _folder(self, repo: str) -> Path:
        return self.cache / repo_folder_name(repo_id=repo, repo_type="model")

    def _ref(self, repo: str, branch: str) -> Path:
        return self._folder(repo) / "refs" / branch


class _NoBar(tqdm):
    """Linking takes no time to be shown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")  # a name that `hf cache prune` clears


@contextmanager
def _locked_part(blob: Path, file: PulledFile) -> Iterator[BinaryIO]:
    with _part(blob).open("ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise PullError(f"another `llm-backend pull` downloads {file.path} now") from exc
        yield part


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub's library raises into a PullError with the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as exc:
        raise PullError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, which forbids every download; unset "
            "it for this command: serving is offline without it"
        ) from exc
    except GatedRepoError as exc:
        raise PullError(
            f"{repo} wants its licence accepted: do so on its page, then `hf auth login`"
        ) from exc
    except RevisionNotFoundError as exc:
        raise PullError(f"{repo} has no such revision; correct it in configs/models") from exc
    except RepositoryNotFoundError as exc:
        raise PullError(f"the hub has no {repo}, or only for those logged in") from exc
    except HfHubHTTPError as exc:
        raise PullError(f"the hub answered {exc.response.status_code} for {repo}") from exc
    except LocalEntryNotFoundError as exc:
        raise PullError(f"the hub gave not all of {repo}; run it again to go on") from exc
    except OSError as exc:
        raise PullError(f"{repo} could not be pulled: {exc}; run it again to go on") from exc
    except Exception as exc:  # its HTTP library's tree of errors is a private detail of the hub's
        if not type(exc).__module__.startswith(("httpx", "httpcore")):
            raise
        raise PullError(
            f"the hub cannot be reached ({type(exc).__name__}); run it again to go on"
        ) from exc


def room_needed(left_bytes: int, free_bytes: int, cache: Path) -> str | None:
    """Why there is not room enough for what is left to download, if so."""
    margin = 2 * 10**9  # logs, compile caches
    if left_bytes + margin <= free_bytes:
        return None
    return (
        f"{size_text(left_bytes)} are to be downloaded and {cache} has {size_text(free_bytes)} "
        "free; make room, or name another disk with HF_HOME"
    )
