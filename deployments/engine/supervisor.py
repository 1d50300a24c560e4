"""Runs one engine, and ends all its processes when the engine's owner is gone.

Standard input is a pipe whose other end only the owner holds: its end of file means "stop", be it
asked for or because the owner was killed. Standard output carries one JSON object a line:
`{"pid": …, "supervisor": …}` once the engine runs, `{"exit": code}` when it has ended (negative:
the signal).

It is forked twice, so that no process group or parent that its owner's framework cleans up holds
it, and it is the reaper of all its descendants, whatever sessions they open. So when this process
has ended, nothing of the engine is left; the lock on the GPU's place is released only then.

Standard library only: run as a script it starts in milliseconds,

    python -I -S supervisor.py GRACE_S LOCK_FD LOG -- command…

and the standby (`forkserver.py`) runs `supervise` in a child of its own.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def fork_away() -> bool:
    """Fork twice into a session of its own; True in the process that is left alone."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def supervise(grace_s: float, lock_fd: int, log: str, engine: Callable[[], None]) -> None:
    """Run `engine` in a child until it ends or standard input does; returns when all is gone.

    `grace_s`: between SIGTERM and SIGKILL. The engine keeps `lock_fd`, and writes to `log`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if _is_unwanted():
        return
    tempfile.tempdir = None  # the standby may have looked in an environment of its own
    # vLLM leaves sockets and torch's meeting points there.
    with tempfile.TemporaryDirectory(prefix="e-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        pid = _start(libc, lock_fd, log, engine)
        _say({"pid": pid, "supervisor": os.getpid()})
        exit_code = _wait_for_end(pid, grace_s)
    _say({"exit": exit_code})


def _is_unwanted() -> bool:
    """Whether the owner has gone, or given up waiting, before the engine was started."""
    is_readable, _, _ = select.select([0], [], [], 0)
    return bool(is_readable) and not os.read(0, 4096)


def _start(libc: ctypes.CDLL, lock_fd: int, log: str, engine: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 127
    try:
        os.setsid()  # its own process group, which a signal can reach as a whole
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            log_fd = _open_log(log)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            os.closerange(3, lock_fd)
            os.closerange(lock_fd + 1, os.sysconf("SC_OPEN_MAX"))
            engine()
            code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # noqa: BLE001  the end of the line for this process
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        with contextlib.suppress(OSError):  # the log's disk is full
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _open_log(log: str) -> int:
    try:
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:  # on a full disk none can be made; the engine serves all the same
        return os.open(os.devnull, os.O_WRONLY)


def _wait_for_end(pid: int, grace_s: float) -> int:
    """Wait until the engine ends or standard input does; then end all that is left."""
    pidfd = os.pidfd_open(pid)
    events = select.poll()
    events.register(0, select.POLLIN | select.POLLHUP)
    events.register(pidfd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in events.poll()}
        if 0 in ready and not os.read(0, 4096):
            _signal_group(pid, signal.SIGTERM)
            select.select([pidfd], [], [], grace_s)
            break
        if pidfd in ready:
            break
    _signal_group(pid, signal.SIGKILL)
    return _reap_all(pid)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _reap_all(main_pid: int) -> int:
    """Kill and reap every descendant; returns the engine's exit code."""
    exit_code = 0
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return exit_code
        if pid == main_pid:
            exit_code = os.waitstatus_to_exitcode(status)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _say(value: dict[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(value).encode() + b"\n")


def main(argv: list[str]) -> None:
    """The script."""
    grace_s, lock_fd, log, separator, *command = argv
    assert separator == "--", argv
    if not fork_away():
        return
    os.set_inheritable(int(lock_fd), True)

    def execute() -> None:
        os.execv(command[0], command)  # noqa: S606  no shell is the point

    supervise(float(grace_s), int(lock_fd), log, execute)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main(sys.argv[1:])
