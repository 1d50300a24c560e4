"""The Python of vLLM's CUDA wheel without its machine code: 10 MiB of 311, read by ranges from the
very file that `requirements-gpu.lock` pins."""

import io
import os
import platform
import shutil
import tempfile
import zipfile
from pathlib import Path

import httpx

from deployments.settings import PROJECT
from tests.conftest import DEMO_HOME
from tests.pure.project.test_locks import read_lock

_INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
_TIMEOUT_S = 60.0
# Larger than what lies between most Python files, so that a request brings many of them.
_READ_BYTES = 1 << 20
# What Python reads of a package: modules, data beside them, and the distribution's version.
_KEPT = (".py", ".json", ".jinja", "METADATA", "entry_points.txt")


class NoWheelError(Exception):
    """The wheel cannot be had here; the text says why."""


class _Ranges(io.RawIOBase):
    """A file behind a URL, of which only what is read is fetched."""

    def __init__(self, http: httpx.Client, url: str) -> None:
        self._http, self._url, self._at = http, url, 0
        head = http.head(url).raise_for_status()
        self._size = int(head.headers["content-length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        span = {"Range": f"bytes={self._at}-{end - 1}"}
        answer = self._http.get(self._url, headers=span).raise_for_status()
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            raise NoWheelError(f"{self._url} gives no ranges")
        buffer[: len(answer.content)] = answer.content
        self._at += len(answer.content)
        return len(answer.content)


def unpacked() -> Path:
    """The folder with the wheel's Python, fetched once: first on `PYTHONPATH`, it is `vllm`.

    Raises:
        NoWheelError: it is not here yet, and the index cannot be reached.
    """
    version, hashes = read_lock(PROJECT / "requirements-gpu.lock")["vllm"]
    folder = DEMO_HOME / "rehearsal" / f"vllm-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        parts = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _fetch(parts, hashes)
            parts.rename(folder)  # whole, or not at all
        except httpx.HTTPError as exc:
            raise NoWheelError(f"vLLM's CUDA wheel cannot be fetched: {exc}") from exc
        finally:
            shutil.rmtree(parts, ignore_errors=True)
    return folder


def _fetch(folder: Path, hashes: list[str]) -> None:
    """Each file's checksum is checked by `zipfile` as it is read."""
    with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True) as http:
        raw = _Ranges(http, _url(http, hashes))
        with zipfile.ZipFile(io.BufferedReader(raw, _READ_BYTES)) as wheel:
            kept = [info for info in wheel.infolist() if info.filename.endswith(_KEPT)]
            for info in sorted(kept, key=lambda info: info.header_offset):
                wheel.extract(info, folder)


def _url(http: httpx.Client, hashes: list[str]) -> str:
    """Where the index has the locked wheel for this machine."""
    accepted = {"Accept": "application/vnd.pypi.simple.v1+json"}
    page = http.get(f"{_INDEX}/vllm/", headers=accepted).raise_for_status().json()
    for file in page["files"]:
        is_ours = file["filename"].endswith(f"{platform.machine()}.whl")
        if is_ours and file["hashes"].get("sha256") in hashes:
            return str(file["url"])
    raise NoWheelError(f"{_INDEX} has no locked vllm wheel for {platform.machine()}")
