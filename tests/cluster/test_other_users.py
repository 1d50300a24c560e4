"""Another user of the machine gets nothing of a running server: no file, no socket, no program."""

import json
import os
import pwd
import shutil
import socket
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.server import Server, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def attempts(dashboard: str, folders: list[Path]) -> dict[str, Any]:
    """What a user does: reads every file below the folders, connects to every Unix socket there,
    and asks Ray's dashboard to run a program."""
    read, connected = [], []
    for top in folders:
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names):
                try:
                    if stat.S_ISSOCK(path.stat().st_mode):
                        with socket.socket(socket.AF_UNIX) as probe:
                            probe.connect(str(path))
                        connected.append(str(path))
                    else:
                        with path.open("rb") as file:
                            file.read(1)
                        read.append(str(path))
                except OSError:
                    continue
    url, body = f"{dashboard}/api/jobs/", json.dumps({"entrypoint": "true"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        status = urllib.request.urlopen(request, timeout=30).status  # noqa: S310
    except urllib.error.HTTPError as error:
        status = error.code
    return {"uid": os.getuid(), "read": read, "connected": connected, "job": status}


def as_nobody(dashboard: str, folders: list[Path]) -> dict[str, Any]:
    """What `attempts` finds in a process of the user `nobody`: a fork, for the interpreter itself
    may lie where no other user can go."""
    nobody = pwd.getpwnam("nobody")
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.write(sending, json.dumps(attempts(dashboard, folders)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(sending)
    os.waitpid(child, 0)
    with os.fdopen(receiving, "rb") as answer:
        found: dict[str, Any] = json.loads(answer.read())
    assert found["uid"] == nobody.pw_uid
    return found


@pytest.fixture(scope="module")
def reachable() -> Iterator[Server]:
    """A server whose home lies where every user may go, as homes under /home often do."""
    folder = Path(tempfile.mkdtemp(prefix="llmb-", dir="/tmp"))
    folder.chmod(0o755)
    before = os.umask(0o022)  # a usual shell's
    try:
        with running(folder) as server:
            yield server
    finally:
        os.umask(before)
        shutil.rmtree(folder, ignore_errors=True)


def test_nobody_reads_connects_or_runs_anything(reachable: Server) -> None:
    """Of its home, and of Ray's folder."""
    server = reachable
    server.chat("qwen-14b")
    dashboard = server.get("/admin/status")["dashboard"]
    mine = server.home / "logs" / "mine.log"
    mine.write_text("x")
    assert str(mine) in attempts(dashboard, [server.home])["read"]  # it would be found
    found = as_nobody(dashboard, [server.home, server.ray_tmp])
    assert found["read"] == []
    assert found["connected"] == []
    assert found["job"] in (401, 403)


def test_what_listens_beyond_loopback_is_nothing(reachable: Server) -> None:
    """Ray's ports too: those with metrics ask for no token."""
    wide = []
    for process in reachable.family():
        try:
            for c in process.net_connections("tcp"):
                if c.status == psutil.CONN_LISTEN and not c.laddr.ip.startswith(
                    ("127.", "::1", "::ffff:127.")
                ):
                    wide.append((c.laddr.ip, c.laddr.port, " ".join(process.cmdline())[:60]))
        except psutil.Error:
            continue
    print(wide)
    for _, port, who in wide:
        with socket.socket() as probe:
            probe.settimeout(1)
            assert probe.connect_ex(("127.0.0.1", port)) in (0, 111), who
    assert not [who for _, _, who in wide if "haproxy" in who or "dashboard" in who]
