"""Runs one command, and ends everything it started when its owner is gone.

Run as a script (standard library only, so it starts in milliseconds):

    python -I -S supervisor.py GRACE_S LOCK_FD LOG -- command…

Standard input is a pipe whose other end only the owner holds: its end of file means "stop", be it
asked for or because the owner was killed. Standard output carries one JSON object a line:
`{"pid": …, "supervisor": …}` once the command runs, `{"exit": code}` when it has ended (negative:
the signal).

It forks twice, so that no process group or parent that its owner's framework cleans up holds it,
and is the reaper of all its descendants, whatever sessions they open. So when this process has
ended, nothing of the engine is left; LOCK_FD, the lock on the GPU's place, is released only then.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Fork away, run the command, and stay until it and its descendants are gone."""
    grace_s, lock_fd, log, separator, *command = argv
    assert separator == "--", argv
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = _start(libc, command, log, int(lock_fd))
    _say({"pid": pid, "supervisor": os.getpid()})
    exit_code = _wait_for_end(pid, float(grace_s))
    _say({"exit": exit_code})


def _start(libc: ctypes.CDLL, command: list[str], log: str, lock_fd: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()  # its own process group, which a signal can reach as a whole
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.set_inheritable(lock_fd, True)
        os.execv(command[0], command)  # noqa: S606  no shell is the point
    finally:
        os._exit(127)


def _wait_for_end(pid: int, grace_s: float) -> int:
    """Wait until the command ends or standard input does; then end all that is left."""
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
    """Kill and reap every descendant; returns the command's exit code."""
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


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main(sys.argv[1:])
