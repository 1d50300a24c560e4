"""A hub on loopback, as `huggingface_hub` asks one: revisions, listings, files with ranges."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")


def git_sha1(content: bytes) -> str:
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def digest_of(path: str, content: bytes) -> str:
    """As the hub names it: SHA-256 of what is stored as a large file, else git's."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return git_sha1(content)


@dataclass
class Request:
    """What was asked, and from which byte on."""

    method: str
    path: str
    start: int


@dataclass
class FakeHub:
    """Holds one repository's revisions; the test sets what it breaks."""

    repo: str
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    lies: dict[str, bytes] = field(default_factory=dict)  # path -> content other than listed
    cut_at: dict[str, int] = field(
        default_factory=dict
    )  # path -> once, close after that many bytes
    hold_at: dict[str, int] = field(default_factory=dict)  # path -> stop sending there
    is_holding: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def publish(self, commit: str, files: dict[str, bytes]) -> None:
        """A new revision, at which the branch `main` then stands."""
        self.revisions[commit] = files
        self.main = commit

    def downloads(self, path: str) -> list[int]:
        """The first byte of each download of a file."""
        return [r.start for r in self.requests if r.method == "GET" and r.path.endswith(path)]


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            hub.requests.append(Request(self.command, path, start))
            api = f"/api/models/{hub.repo}"
            if path.startswith(f"{api}/revision/"):
                self._revision(path.removeprefix(f"{api}/revision/"))
            elif path.startswith(f"{api}/tree/"):
                self._tree(hub.revisions.get(path.removeprefix(f"{api}/tree/")))
            elif path.startswith(f"/{hub.repo}/resolve/"):
                commit, _, name = path.removeprefix(f"/{hub.repo}/resolve/").partition("/")
                self._file(commit, name, start)
            else:
                self._missing("RepoNotFound")

        def _revision(self, name: str) -> None:
            commit = hub.main if name == "main" else name
            if commit not in hub.revisions:
                self._missing("RevisionNotFound")
            else:
                self._json({"id": hub.repo, "sha": commit, "siblings": []})

        def _tree(self, files: dict[str, bytes] | None) -> None:
            if files is None:
                self._missing("RevisionNotFound")
                return
            entries = []
            for path, content in files.items():
                entry = {"type": "file", "path": path, "size": len(content)}
                entry["oid"] = git_sha1(content)
                if path.endswith(LARGE):
                    oid = digest_of(path, content)
                    entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self._json(entries)

        def _file(self, commit: str, path: str, start: int) -> None:
            listed = hub.revisions[commit][path]
            content = hub.lies.get(path, listed)
            begin = 0 if hub.ignores_ranges else start
            if begin >= len(content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{digest_of(path, listed)}"')
            self.send_header("X-Linked-Size", str(len(listed)))
            if begin:
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if self.command == "GET":
                self._send(path, content, begin)

        def _send(self, path: str, content: bytes, begin: int) -> None:
            cut, hold = hub.cut_at.pop(path, None), hub.hold_at.pop(path, None)
            end = cut or hold or len(content)
            try:
                self.wfile.write(content[begin:end])
                self.wfile.flush()
                if hold:
                    hub.is_holding.set()
                    hub.release.wait(30)
                    self.wfile.write(content[end:])
                self.close_connection = cut is not None
            except OSError:  # the client has gone
                self.close_connection = True

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
