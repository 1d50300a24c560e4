"""One holder of the GPU's place at a time, whoever started it; orphans are ended, others spared."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from deployments.engine.events import EngineFailed
from deployments.engine.gpu_lock import acquire, is_held, note_holder, session_members
from deployments.settings import paths

DEADLINE_S = 10
NO_PROCESS = 2**22 + 1  # past Linux's largest process number

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
# A session leader that ignores SIGTERM, with a child in its session
ENGINE = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "place.lock"


@contextmanager
def holder(lock_file: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the place."""
    lock_file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(lock_file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


@pytest.fixture
def engine() -> Iterator["subprocess.Popen[str]"]:
    """A process that leads a session, with one child in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def note(lock_file: Path, session: int, supervisor: int = NO_PROCESS) -> None:
    lock_file.parent.mkdir(exist_ok=True)
    note_holder(lock_file, model="qwen-vl", epoch=3, supervisor=supervisor, session=session)


async def take_and_give_back(lock_file: Path, timeout_s: float = DEADLINE_S) -> None:
    os.close(await acquire(lock_file, timeout_s))


async def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while session_members(session):
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def test_free_place_is_taken_and_given_back(lock_file):
    fd = await acquire(lock_file, timeout_s=0)
    assert is_held(lock_file.parent.parent)
    os.close(fd)
    assert not is_held(lock_file.parent.parent)


async def test_held_place_is_refused_and_the_holder_named(lock_file):
    with holder(lock_file) as process:
        note(lock_file, session=process.pid, supervisor=NO_PROCESS)
        holder_note = json.loads(lock_file.read_text()) | {"session": NO_PROCESS}
        lock_file.write_text(json.dumps(holder_note))
        assert is_held(lock_file.parent.parent)
        with pytest.raises(EngineFailed) as caught:
            await acquire(lock_file, timeout_s=0)
        assert process.poll() is None
    assert caught.value.problem.code == "place_taken"
    assert "qwen-vl" in caught.value.problem.message
    assert str(NO_PROCESS) in caught.value.problem.message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"session": "x", "supervisor": null}'])
async def test_holder_that_left_no_note_is_another_process(lock_file, content):
    with holder(lock_file):
        lock_file.write_text(content)
        with pytest.raises(EngineFailed) as caught:
            await acquire(lock_file, timeout_s=0)
    assert "another process" in caught.value.problem.message


async def test_waiter_gets_the_place_once_the_holder_ends(lock_file):
    with holder(lock_file) as process:
        taking = asyncio.create_task(take_and_give_back(lock_file))
        await asyncio.sleep(0)
        assert not taking.done()
        process.kill()
        await taking


async def test_refused_waiter_keeps_nothing_open(lock_file):
    with holder(lock_file):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(EngineFailed):
            await acquire(lock_file, timeout_s=0)
        assert len(os.listdir("/proc/self/fd")) == before
    await take_and_give_back(lock_file)


async def test_session_whose_supervisor_is_dead_is_killed(lock_file, engine):
    note(lock_file, session=engine.pid)
    assert len(session_members(engine.pid)) == 2
    await take_and_give_back(lock_file)
    await wait_until_gone(engine.pid)
    assert engine.wait(DEADLINE_S) == -signal.SIGKILL


async def test_session_without_its_leader_is_killed_too(lock_file, engine):
    note(lock_file, session=engine.pid)
    engine.kill()
    engine.wait(DEADLINE_S)
    assert len(session_members(engine.pid)) == 1
    await take_and_give_back(lock_file)
    await wait_until_gone(engine.pid)


@pytest.fixture
async def supervisor() -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that lives until the end of the test."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    yield process
    process.kill()
    await process.wait()


async def test_session_of_a_living_supervisor_is_spared(lock_file, engine, supervisor):
    note(lock_file, session=engine.pid, supervisor=supervisor.pid)
    await take_and_give_back(lock_file)
    assert len(session_members(engine.pid)) == 2


async def test_session_whose_supervisors_number_was_given_again_is_killed(
    lock_file, engine, supervisor
):
    """Another process has it now, which may even be the supervisor of another engine."""
    note(lock_file, session=engine.pid, supervisor=supervisor.pid)
    changed = json.loads(lock_file.read_text()) | {"supervisor_ticks": 1}
    lock_file.write_text(json.dumps(changed))
    await take_and_give_back(lock_file)
    await wait_until_gone(engine.pid)


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"numbering": "another boot"}])
async def test_session_that_got_the_number_later_is_spared(lock_file, engine, change):
    """The lock file outlives reboots: its numbers may by then be a login's, or a database's."""
    note(lock_file, session=engine.pid)
    lock_file.write_text(json.dumps(json.loads(lock_file.read_text()) | change))
    await take_and_give_back(lock_file)
    assert len(session_members(engine.pid)) == 2


def test_place_of_a_server_that_never_ran_is_free(lock_file):
    assert not is_held(lock_file.parent.parent)


async def test_place_of_one_model_is_not_that_of_another(lock_file):
    """Where engines sleep beside the one that is awake; the server's is taken all the same."""
    home = lock_file.parent.parent
    fds = [await acquire(home / paths.gpu_lock(name), timeout_s=0) for name in ("a", "b")]
    assert is_held(home)
    for fd in fds:
        os.close(fd)
    assert not is_held(home)
