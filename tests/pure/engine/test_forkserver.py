"""A standby that cannot fork, or whose packages were replaced: the asker learns it at once."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.engine.forkserver import ForkServerError, ForkServerKeeper, listens, request_engine
from deployments.settings import PROJECT

pytest.importorskip("torch")

# A standby without vLLM's imports, changed by the lines in its second argument.
SCRIPT = """
import errno, os, sys
from pathlib import Path
from deployments.engine import forkserver, main as engine_main
engine_main.preload = engine_main.fork_engine_core = engine_main.register_kernels = lambda: None
engine_main.load_tokenizer = lambda *_: None
forkserver._PACKAGES = ("torch",)
exec(sys.argv[2])
forkserver.main(Path(sys.argv[1]))
"""
NO_MEMORY = """
def fork():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")
os.fork = fork
"""
# Its second look differs from the first.
REPLACED = """
looks = iter([[(1, 1)], [(2, 2)]])
forkserver._packages = lambda: next(looks)
"""


@contextmanager
def standby(
    path: Path, change: str = "", *, is_first: bool = True
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """One that listens at `path`, or waits for its turn there, until the end of the `with`; and its
    owner's end of its standard input."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), change],
            stdin=theirs,
            stderr=subprocess.DEVNULL,
            cwd=PROJECT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        try:
            ours.settimeout(60)
            if is_first:
                assert ours.recv(100) == b"ready\n"
            yield process, ours
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("change", [NO_MEMORY, REPLACED])
def test_standby_that_can_not_serve_ends_and_gives_everything_back(
    tmp_path: Path, change: str
) -> None:
    """The supervisor's output ends without a word, which is the sign to start without a standby;
    the lock that was sent along is held by nobody."""
    path = tmp_path / "standby.sock"
    stop_read, stop_write = os.pipe()
    status_read, status_write = os.pipe()
    lock_read, lock_write = os.pipe()  # its end of file tells that nobody holds the other end
    with standby(path, change) as (process, _):
        request = {"flags": [], "checkpoint": "", "runner": "generate"}
        try:
            pid = request_engine(path, request, [stop_read, status_write, lock_write])
            assert pid == process.pid
        except ForkServerError:  # it had seen its packages replaced, and left, a moment before
            assert change == REPLACED
        for fd in (stop_read, status_write, lock_write):
            os.close(fd)
        assert os.read(status_read, 100) == b""
        assert os.read(lock_read, 100) == b""
        process.wait(20)
        with pytest.raises(ForkServerError):
            request_engine(path, {}, [0, 0, 0])
    for fd in (stop_write, status_read, lock_read):
        os.close(fd)


def test_second_standby_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    """So a killed one is followed by another, and only one has the memory of the imports."""
    path = tmp_path / "standby.sock"
    with standby(path) as (first, _), standby(path, is_first=False) as (_, owner):
        assert listens(path)
        first.kill()
        assert owner.recv(100) == b"ready\n"
        assert listens(path)


def test_standby_that_waits_for_its_turn_ends_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "standby.sock"
    with standby(path), standby(path, is_first=False) as (second, owner):
        owner.close()
        assert second.wait(20) == 0
        assert listens(path)  # the first one's socket was not its to remove


async def test_nobody_waits_for_a_standby_that_can_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where numpy starts threads at its import: each switch would wait in vain."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    keeper = ForkServerKeeper(tmp_path, {})
    keeping = asyncio.create_task(keeper.run())
    async with asyncio.timeout(60):
        await keeper.wait_ready(60)
    keeping.cancel()
