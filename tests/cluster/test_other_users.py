"""What another user of the machine reaches of a running server: asked as `nobody`."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from serve_app.launcher import private
from tests.cluster.server import Server

LOOPBACK = ("127.", "::1", "::ffff:127.")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root"),
]

# As `nobody`, tries each path in every way, and says which let it in.
LOOK = """
import json, os, socket, sys

os.setgroups([])
os.setgid(65534)
os.setuid(65534)

def attempt(what, action):
    try:
        action()
    except OSError:
        return []
    return [what]

roots, sockets = json.load(sys.stdin)
open_ones = []
def look(path):
    open_ones.extend(attempt(f"write {path}", lambda: os.open(path, os.O_WRONLY)))
    if os.path.isdir(path):
        names = os.listdir(path) if attempt("", lambda: os.listdir(path)) else []
        open_ones.extend(attempt(f"make in {path}", lambda: os.mkdir(path + "/theirs")))
        for name in names:
            if not os.path.islink(path + "/" + name):
                look(path + "/" + name)
    else:
        open_ones.extend(attempt(f"read {path}", lambda: open(path).close()))
for root in roots:
    look(root)
for name in sockets:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as client:
            path = "\\0" + name[1:] if name.startswith("@") else name
            open_ones.extend(attempt(f"connect {name}", lambda: client.connect(path)))
json.dump(open_ones, sys.stdout)
"""


def as_nobody(roots: list[Path], sockets: list[str]) -> list[str]:
    """What is open to another user of these folders and sockets."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOOK],
        input=json.dumps([[str(root) for root in roots], sockets]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    return found


def connections(server: Server, kind: str) -> dict[Any, str]:
    """What its processes are bound to, and who: TCP addresses that listen, or sockets' names."""
    found = {}
    for process in server.family():
        try:
            for c in process.net_connections(kind):
                if c.laddr and (kind == "unix" or c.status == psutil.CONN_LISTEN):
                    found[c.laddr] = " ".join(process.cmdline())[:80]
        except psutil.Error:
            continue
    return found


def test_no_file_or_socket_is_open_to_another_user(server: Server) -> None:
    """Neither the token, a log or the state, nor the engine's socket, HAProxy's or Ray's."""
    server.switch("qwen-14b")
    run = server.home / "run"
    roots = [server.home, server.ray_tmp]
    roots += [(run / name).resolve() for name in ("ray", "haproxy")]
    sockets = [str(name) for name in connections(server, "unix")]
    assert any(re.search(r"/qwen-14b-\d+\.sock$", name) for name in sockets)
    assert any("admin.sock" in name for name in sockets)
    assert private.ray_token(server.home).exists()
    assert as_nobody(roots, sockets) == []


def test_what_is_open_is_found() -> None:
    """The look above sees what there is to be seen."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="open-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "token").write_text("t")
        (folder / "token").chmod(0o644)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/socket")
            listener.listen()
            (folder / "socket").chmod(0o777)
            found = as_nobody([folder], [f"{folder}/socket"])
    assert found == [f"make in {folder}", f"read {folder}/token", f"connect {folder}/socket"]


# A call that each of Ray's gRPC servers knows, by who they are: any call is as good as another.
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/ReportOCMetrics",
    "/ray.serve.ASGIService/HandleRequest",
)


def call_without_token(port: int, method: str) -> grpc.StatusCode | None:
    """How a gRPC call ends; None where it was carried out."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=60)
        except grpc.RpcError as exc:
            code: grpc.StatusCode = exc.code()
            return code
    return None


def asks_for_the_token(port: int) -> bool:
    """Whether what listens there, if it is Ray's, does nothing without the token: a gRPC server
    that knows one of the calls, an HTTP server, or one that has nothing but metrics."""
    ends = {call_without_token(port, method) for method in CALLS}
    if None in ends:
        return False
    if grpc.StatusCode.UNAUTHENTICATED in ends:
        return True
    try:
        answers = [
            httpx.request(verb, f"http://127.0.0.1:{port}{path}", json={}, timeout=30)
            for verb, path in (("POST", "/api/jobs/"), ("GET", "/nodes"))
        ]
    except httpx.HTTPError:
        return False
    return all(answer.status_code == 401 or "# H" in answer.text[:3] for answer in answers)


def test_no_port_lets_anybody_in(server: Server) -> None:
    """The public address, and three more that lead to the same gateway, hold to its keys; all
    others are Ray's, and ask for its token. On all interfaces is one port of each of Serve's
    replicas, whatever is set; it asks too."""
    server.switch("qwen-14b")  # which has the address that it had of its own
    listeners = connections(server, "tcp")
    wide = {a: who for a, who in listeners.items() if not a.ip.startswith(LOOPBACK)}
    assert all(who.startswith("ray::ServeReplica") for who in wide.values()), wide
    gateway = {a.port for a in listeners if is_gateway(a.port)}
    public = int(server.url.rpartition(":")[2])
    assert {public, server.old_port("qwen-14b")} <= gateway
    assert len(gateway) == 4, gateway  # the replica's own, and the fallback's
    assert not gateway & {a.port for a in wide}
    assert [
        (address, who)
        for address, who in listeners.items()
        if address.port not in gateway and not asks_for_the_token(address.port)
    ] == []


def is_gateway(port: int) -> bool:
    try:
        return "resident" in httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).json()
    except (httpx.HTTPError, ValueError):
        return False


def test_dashboard_runs_no_job_without_the_token(server: Server) -> None:
    """With it, it would run any program as the server's user."""
    url = server.get("/admin/status")["dashboard"]
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
        answer = httpx.post(f"{url}/api/jobs/", json={"entrypoint": "id"}, headers=headers)
        assert answer.status_code in (401, 403)
    jobs = server.dashboard("GET", "/api/jobs/").json()
    assert [job["type"] for job in jobs] == ["DRIVER"]  # `serve run` itself
