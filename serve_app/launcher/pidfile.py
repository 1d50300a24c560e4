"""The PID file of the server that uses a home folder, and stopping exactly that server.

`llm-backend start` writes the note to `<home>/run/server.json`: its own process, which ends Serve,
Ray and the engine in order, and Serve's, whose session holds the rest should the first be killed.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.engine import gpu_lock
from deployments.host import processes
from deployments.host.files import write_whole
from deployments.settings import paths
from serve_app.launcher import private

_POLL_S = 0.1
_KEEPER_S = 90.0  # it gives Serve 40 s, and as long to the engine
_SERVE_S = 40.0
_GRACE_S = 10.0


class RunningServer(BaseModel):
    """The note."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    numbering: str  # the boot and container in which the process numbers mean something
    keeper: int
    keeper_ticks: int
    serve: int
    serve_ticks: int
    url: str
    profile: str
    is_ready: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether the process lives that ends all the others in order."""
        return _is_alive(self.numbering, self.keeper, self.keeper_ticks)

    @property
    def is_alive(self) -> bool:
        return self.is_kept or _is_alive(self.numbering, self.serve, self.serve_ticks)


def note(home: Path, serve: int, url: str, profile: str) -> None:
    """Write down that this process keeps `serve`."""
    keeper = os.getpid()
    running = RunningServer(
        numbering=processes.numbering(),
        keeper=keeper,
        keeper_ticks=processes.start_ticks(keeper) or 0,
        serve=serve,
        serve_ticks=processes.start_ticks(serve) or 0,
        url=url,
        profile=profile,
    )
    _write(home, running)


def note_ready(home: Path) -> None:
    """Write down that the server which this process keeps has come up."""
    _write(home, _read(home).model_copy(update={"is_ready": True}))


def forget(home: Path) -> None:
    """There is no server any more."""
    _path(home).unlink(missing_ok=True)


def find(home: Path) -> RunningServer | None:
    """The server that runs on `home`."""
    try:
        running = _read(home)
    except (OSError, ValidationError):
        return None
    return running if running.is_alive else None


def stop(home: Path, running: RunningServer, say: Callable[[str], None]) -> list[str]:
    """End the server with all it started; returns what is left of it, a line each.

    (1) The keeper ends everything in order. (2) Where it was killed, or does not, Serve ends its
    own cluster. (3) What then still lives of them is killed.
    """
    members = _members(running)
    if running.is_kept:  # (1)
        os.kill(running.keeper, signal.SIGTERM)
        _wait_until(lambda: not running.is_kept, _KEEPER_S)
    if _is_alive(running.numbering, running.serve, running.serve_ticks):  # (2)
        say("The process that kept Serve has not ended it; ending it now")
        members |= _members(running)
        os.kill(running.serve, signal.SIGTERM)
        _wait_until(lambda: not running.is_alive, _SERVE_S)
    _wait_until(lambda: not _living(members), _GRACE_S)
    for member in _living(members):  # (3)
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    _wait_until(lambda: not _living(members), _GRACE_S)
    lines = [f"process {member.pid} ({_name(member)})" for member in _living(members)]
    if not _wait_until(lambda: not gpu_lock.is_held(home), _GRACE_S):
        lines.append(f"an engine, which holds its place in {home}")
    if not lines:
        forget(home)
        private.remove_folders(home)
    return lines


def _members(running: RunningServer) -> set[psutil.Process]:
    """Serve's session, and what the two of the note have started."""
    members: set[psutil.Process] = set()
    if running.numbering != processes.numbering():
        return members
    known = ((running.keeper, running.keeper_ticks), (running.serve, running.serve_ticks))
    for pid, ticks in known:
        with contextlib.suppress(psutil.NoSuchProcess):
            if processes.start_ticks(pid) == ticks:
                parent = psutil.Process(pid)
                members |= {parent, *parent.children(recursive=True)}
                members |= set(gpu_lock.session_members(running.serve))
    return members


def _is_alive(numbering: str, pid: int, ticks: int) -> bool:
    if numbering != processes.numbering() or processes.start_ticks(pid) != ticks:
        return False
    try:
        return bool(_living({psutil.Process(pid)}))
    except psutil.NoSuchProcess:
        return False


def _living(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; a zombie only waits for its parent."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "ended just now"


def _wait_until(is_true: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _path(home: Path) -> Path:
    return home / paths.SERVER


def _read(home: Path) -> RunningServer:
    return RunningServer.model_validate_json(_path(home).read_text())


def _write(home: Path, running: RunningServer) -> None:
    path = _path(home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, running.model_dump_json(indent=1) + "\n")
