"""The lock on the machine's GPU: at most one engine holds it, whichever server started the engine.

The lock is an flock on a file in the server's home. The engine's supervisor holds it until nothing
of the engine is left, so it outlives a killed replica, and a second copy of the server on the same
home cannot load. The file's text says whose it is.
"""

import asyncio
import fcntl
import json
import os
import signal
from pathlib import Path

import psutil

from deployments.engine.events import EngineFailed
from deployments.host import processes
from deployments.residency import Problem
from deployments.settings import paths

_RETRY_S = 0.05


async def acquire(lock_file: Path, timeout_s: float) -> int:
    """Lock the place and clear what an earlier engine left; returns the locked descriptor.

    Raises:
        EngineFailed: it is still held after `timeout_s`; the message names the holder.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        while not _try_lock(fd):
            _kill_orphans(lock_file)
            if asyncio.get_running_loop().time() > deadline:
                raise EngineFailed(Problem("place_taken", _describe_holder(lock_file)))
            await asyncio.sleep(_RETRY_S)  # flock has no wait that can be given up
        for other in lock_file.parent.glob(paths.GPU_LOCKS):  # also those of the other mode
            _kill_orphans(other)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_held(home: Path) -> bool:
    """Whether an engine holds a place now."""
    return any(_is_locked(path) for path in (home / paths.RUN).glob(paths.GPU_LOCKS))


def _is_locked(lock_file: Path) -> bool:
    try:
        fd = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def note_holder(lock_file: Path, *, model: str, epoch: int, supervisor: int, session: int) -> None:
    """Write whose the place is; `session` is the engine's session id, which its children share."""
    holder = {
        "model": model,
        "epoch": epoch,
        "supervisor": supervisor,
        "supervisor_ticks": processes.start_ticks(supervisor),
        "session": session,
        "numbering": processes.numbering(),
        "start_ticks": processes.start_ticks(session),
    }
    lock_file.write_text(json.dumps(holder))


def holders(home: Path) -> list[tuple[str, int]]:
    """Model and session of each engine that holds a place now; several where some sleep."""
    found = []
    for path in sorted((home / paths.RUN).glob(paths.GPU_LOCKS)):
        noted = _read_holder(path)
        model, session = noted.get("model"), noted.get("session")
        if isinstance(model, str) and isinstance(session, int) and _is_locked(path):
            found.append((model, session))
    return found


def session_members(session: int) -> list[psutil.Process]:
    """The living processes of one session."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return members


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(lock_file: Path) -> dict[str, int | str | None]:
    try:
        holder = json.loads(lock_file.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _kill_orphans(lock_file: Path) -> None:
    """End an engine whose supervisor is dead.

    The file outlives engines and reboots, so its numbers may have been given to others since: (1)
    in another boot or container, or (2) to a process that started at another time.
    """
    holder = _read_holder(lock_file)
    session, supervisor = holder.get("session"), holder.get("supervisor")
    if not isinstance(session, int) or not isinstance(supervisor, int):
        return
    if holder.get("numbering") != processes.numbering():  # (1)
        return
    if _lives(supervisor, holder.get("supervisor_ticks")):  # (2)
        return
    if processes.start_ticks(session) not in (None, holder.get("start_ticks")):  # (2)
        return
    for process in session_members(session):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def _lives(pid: int, start_ticks: int | str | None) -> bool:
    """Whether the process that started then lives; a zombie does not."""
    if start_ticks is None or processes.start_ticks(pid) != start_ticks:
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe_holder(lock_file: Path) -> str:
    holder = _read_holder(lock_file)
    if "model" not in holder:
        return "the GPU's place is held by another process"
    return (
        f"the GPU's place is held by an engine of {holder['model']} "
        f"(process {holder.get('session')}), perhaps of a second copy of this server"
    )
