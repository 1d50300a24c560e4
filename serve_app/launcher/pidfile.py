"""PID file of the server that uses one LLM_BACKEND_HOME, and stopping exactly that server.

The launcher writes it to `<home>/run/server.json`. It names the launcher, which ends Serve, Ray and
the engine in order, and the process of `serve run`, whose session holds all the others: `stop` uses
that session if the launcher was killed.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.engine import gpu_lock
from deployments.host import processes
from deployments.host.files import write_whole
from deployments.settings import paths
from serve_app.launcher import private

_POLL_S = 0.1
_LAUNCHER_S = 90.0  # the launcher waits up to 40 s for Serve, and 40 s for the engine
_SERVE_S = 40.0
_GRACE_S = 10.0


class RunningServer(BaseModel):
    """The PID file's content.

    A process ID alone is not enough, because the system reuses it: `…_ticks` is the start time of
    the process in clock ticks since boot.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True
    )

    numbering: str  # the boot and container in which the process IDs are valid
    # The file keeps the older names, so that `llm-backend stop` also stops a server of an older
    # version.
    launcher_pid: int = Field(alias="keeper")
    launcher_ticks: int = Field(alias="keeper_ticks")
    serve_pid: int = Field(alias="serve")
    serve_ticks: int
    url: str
    profile: str
    is_ready: bool = False

    @property
    def has_launcher(self) -> bool:
        """Whether the launcher lives, which ends all other processes in order."""
        return _is_alive(self.numbering, self.launcher_pid, self.launcher_ticks)

    @property
    def has_serve(self) -> bool:
        return _is_alive(self.numbering, self.serve_pid, self.serve_ticks)

    @property
    def is_alive(self) -> bool:
        return self.has_launcher or self.has_serve


def note(home: Path, serve_pid: int, url: str, profile: str) -> None:
    """Write the PID file: this process is the launcher of the Serve process `serve_pid`."""
    launcher_pid = os.getpid()
    server = RunningServer(
        numbering=processes.numbering(),
        launcher_pid=launcher_pid,
        launcher_ticks=processes.start_ticks(launcher_pid) or 0,
        serve_pid=serve_pid,
        serve_ticks=processes.start_ticks(serve_pid) or 0,
        url=url,
        profile=profile,
    )
    _write(home, server)


def note_ready(home: Path) -> None:
    """Record in the PID file that this process's server is ready."""
    _write(home, _read(home).model_copy(update={"is_ready": True}))


def forget(home: Path) -> None:
    """Delete the PID file."""
    _path(home).unlink(missing_ok=True)


def find(home: Path) -> RunningServer | None:
    """Return the server that uses `home`, None if none runs."""
    try:
        server = _read(home)
    except (OSError, ValidationError):
        return None
    return server if server.is_alive else None


def stop(home: Path, server: RunningServer, report: Callable[[str], None]) -> list[str]:
    """Stop the server and every process that it started.

    (1) The launcher ends everything in order. (2) If the launcher was killed, or does not do so,
    Serve ends its own cluster. (3) Processes that still live after that are killed.

    Returns:
        One line for each process that still runs.
    """
    members = _members(server)
    if server.has_launcher:  # (1)
        os.kill(server.launcher_pid, signal.SIGTERM)
        _wait_until(lambda: not server.has_launcher, _LAUNCHER_S)
    if server.has_serve:  # (2)
        report("The launcher has not stopped Serve; stopping Serve directly")
        members |= _members(server)
        os.kill(server.serve_pid, signal.SIGTERM)
        _wait_until(lambda: not server.is_alive, _SERVE_S)
    _wait_until(lambda: not _living(members), _GRACE_S)
    for member in _living(members):  # (3)
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    _wait_until(lambda: not _living(members), _GRACE_S)
    lines = [f"process {member.pid} ({_name(member)})" for member in _living(members)]
    if not _wait_until(lambda: not gpu_lock.is_held(home), _GRACE_S):
        lines.append(f"an engine, which holds the GPU lock in {home}")
    if not lines:
        forget(home)
        private.remove_folders(home)
    return lines


def _members(server: RunningServer) -> set[psutil.Process]:
    """Return the launcher, Serve, their descendants, and every process in Serve's session."""
    members: set[psutil.Process] = set()
    if server.numbering != processes.numbering():
        return members
    known = (
        (server.launcher_pid, server.launcher_ticks),
        (server.serve_pid, server.serve_ticks),
    )
    for pid, ticks in known:
        with contextlib.suppress(psutil.NoSuchProcess):
            if processes.start_ticks(pid) == ticks:
                parent = psutil.Process(pid)
                members |= {parent, *parent.children(recursive=True)}
                members |= set(gpu_lock.session_members(server.serve_pid))
    return members


def _is_alive(numbering: str, pid: int, ticks: int) -> bool:
    if numbering != processes.numbering() or processes.start_ticks(pid) != ticks:
        return False
    try:
        return bool(_living({psutil.Process(pid)}))
    except psutil.NoSuchProcess:
        return False


def _living(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that have not ended; a zombie has ended."""
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


def _write(home: Path, server: RunningServer) -> None:
    path = _path(home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, server.model_dump_json(indent=1) + "\n")
