"""The parts of a running server that a fault may kill, by their processes."""

import psutil

from tests.cluster.server import Server

ENGINE_PARTS = ("api server", "engine core", "supervisor", "replica")
_TITLES = {
    "switchboard": "ray::ServeReplica:llm-backend:Switchboard",
    "gateway": "ray::ServeReplica:llm-backend:Gateway",
    "controller": "ray::ServeController",
}
PARTS = (*ENGINE_PARTS, *_TITLES, "proxy")
FRONT = ("gateway", "proxy")  # a request's bytes go through these: their death is its client's loss


def find(server: Server, part: str) -> psutil.Process | None:
    """The process of `part`, if it runs just now; of the one engine, where it is an engine's."""
    try:
        if part not in ENGINE_PARTS:
            return _in_tree(server, _TITLES.get(part, "haproxy"))
        engines = server.watch().engines()
        if not engines:
            return None
        ((socket, engine),) = engines.items()
        if part == "replica":
            model = socket.rpartition("-")[0]
            return _in_tree(server, f"ray::ServeReplica:llm-backend:{model}")
        if part == "supervisor":
            parent = engine[0].parent()
            return parent if parent and is_supervisor(parent) else None
        return next(
            (p for p in engine if ("EngineCore" in _line(p)) == (part != "api server")), None
        )
    except psutil.NoSuchProcess:
        return None


def find_standby(server: Server) -> psutil.Process | None:
    """The process that engines would be forked from."""
    return _in_tree(server, "llm-backend standby")


def kill(server: Server, part: str) -> psutil.Process:
    """SIGKILL; the part must be there."""
    process = find(server, part)
    assert process, f"there is no {part}"
    process.kill()
    return process


def is_supervisor(process: psutil.Process) -> bool:
    return "supervisor.py" in _line(process)


def titles(server: Server) -> list[str]:
    """The titles of this server's replicas and proxies that live, without what they are doing."""
    lines = [_line(p) for p in psutil.Process(server.process.pid).children(recursive=True)]
    found = [line.split(".")[0].strip() for line in lines if line.startswith("ray::ServeReplica")]
    return sorted(found)


def _in_tree(server: Server, title: str) -> psutil.Process | None:
    tree = psutil.Process(server.process.pid).children(recursive=True)
    if title == "haproxy":
        return next((p for p in tree if p.name() == title), None)
    return next((p for p in tree if _line(p).startswith(title)), None)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
