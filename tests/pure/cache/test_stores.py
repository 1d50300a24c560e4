"""Tests the stores in memory and on disk, and the guard that bounds what a bad store costs."""

import asyncio
import os
import sqlite3
import stat
from contextlib import suppress

import pytest

from deployments.settings import PROJECT
from serve_app.cache.guard import Circuit, GuardedStore
from serve_app.cache.stores import DiskStore, MemoryStore, StoreFailed

KIB = 1024


@pytest.fixture(params=["memory", "disk"])
async def store(request, tmp_path):
    """A store that holds 256 KiB for an hour."""
    made = (
        MemoryStore(256 * KIB, 3600)
        if request.param == "memory"
        else DiskStore(tmp_path / "cache", 256 * KIB, 3600)
    )
    yield made
    await made.close()


async def test_a_value_is_found_until_the_store_is_cleared(store):
    """Values may be any bytes; a later value replaces an earlier one."""
    await store.set("a", b"\x00\xff")
    await store.set("a", b"new")
    await store.set("b", b"")
    assert await store.get("a") == b"new"
    assert await store.get("c") is None
    assert (await store.size())[0] == 2
    assert await store.clear() == 2
    assert await store.get("a") is None
    assert (await store.size())[0] == 0


async def test_a_store_never_holds_more_than_its_bytes(store):
    """The newest value is kept and older values are dropped."""
    for number in range(100):
        await store.set(f"{number:064}", b"x" * 10 * KIB)
        _, num_bytes = await store.size()
        assert num_bytes <= 256 * KIB
        assert await store.get(f"{number:064}")
    assert await store.get(f"{0:064}") is None
    assert (await store.size())[0] > 10


async def test_a_value_larger_than_the_store_is_not_kept(store):
    """And the store works afterwards."""
    await store.set("large", b"x" * 300 * KIB)
    assert await store.get("large") is None
    await store.set("small", b"x")
    assert await store.get("small") == b"x"


@pytest.mark.parametrize("kind", ["memory", "disk"])
async def test_an_expired_value_is_not_found(kind, tmp_path):
    """`ttl_s` is so short here that it is over at once."""
    store = MemoryStore(KIB * 8, 1e-9) if kind == "memory" else DiskStore(tmp_path, 9**9, 1e-9)
    await store.set("a", b"x")
    assert await store.get("a") is None
    await store.close()


# --- disk ---


@pytest.fixture
async def disk(tmp_path):
    store = DiskStore(tmp_path / "cache", 2**20, 3600)
    yield store
    await store.close()


async def test_a_disk_keeps_answers_for_the_next_process(disk, tmp_path):
    """And for a second process at the same time."""
    await disk.set("a", b"x")
    other = DiskStore(tmp_path / "cache", 2**20, 3600)
    assert await other.get("a") == b"x"
    await other.set("b", b"y")
    assert await disk.get("b") == b"y"
    await other.close()


async def test_only_the_owner_can_read_the_disk_store(disk, tmp_path):
    """Answers may reveal what users asked."""
    await disk.set("a", b"x")
    folder = tmp_path / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


async def test_a_file_that_is_no_database_is_replaced(tmp_path):
    """It costs one failed call; the server starts all the same."""
    path = tmp_path / "answers.sqlite3"
    path.write_bytes(b"garbage" * 1000)
    store = DiskStore(tmp_path, 2**20, 3600)
    with pytest.raises(StoreFailed):
        await store.get("a")
    await store.set("a", b"x")
    assert await store.get("a") == b"x"
    await store.close()


async def test_a_database_damaged_in_use_is_replaced(disk, tmp_path):
    """Calls may fail meanwhile, but never return a wrong answer; then the store works again."""
    for number in range(20):
        await disk.set(str(number), b"x" * 5000)
    path = tmp_path / "cache" / "answers.sqlite3"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    path.write_bytes(os.urandom(path.stat().st_size))
    for _ in range(3):
        with suppress(StoreFailed):
            await disk.set("a", b"new")
    assert await disk.get("a") == b"new"
    assert await disk.get("0") is None


async def test_a_deleted_folder_is_created_again(disk, tmp_path):
    """A user may delete it to free disk space."""
    await disk.set("a", b"x")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    assert await disk.get("a") is None
    await disk.set("a", b"new")
    assert await disk.get("a") == b"new"


async def test_a_folder_that_cannot_be_created_is_a_store_failure(tmp_path):
    """For instance on a read-only disk."""
    (tmp_path / "file").touch()
    store = DiskStore(tmp_path / "file" / "cache", 2**20, 3600)
    with pytest.raises(StoreFailed):
        await store.get("a")
    await store.close()


# --- the guard ---


def test_the_circuit_opens_after_three_failures_in_a_row():
    """Two failures do not open it: this process itself may have been late."""
    circuit = Circuit()
    for _ in range(5):
        circuit.failed(0)
        circuit.failed(0)
        circuit.succeeded()
    assert circuit.may_try(0)
    for _ in range(3):
        circuit.failed(0)
    assert not circuit.may_try(0)


def test_an_open_circuit_lets_one_try_pass_after_each_pause():
    """The pauses double up to 15 s and then stay there."""
    circuit, now, tries = Circuit(), 0.0, []
    for _ in range(3):
        circuit.failed(now)
    while now < 100:
        now += 0.125
        if circuit.may_try(now):
            tries.append(now)
            assert not circuit.may_try(now)
            circuit.failed(now)
    assert tries == [1, 3, 7, 15, 30, 45, 60, 75, 90]


def test_a_try_that_never_ends_does_not_block_the_next():
    """The client of the first try left; the second try comes after one more pause."""
    circuit = Circuit()
    for _ in range(3):
        circuit.failed(0)
    assert circuit.may_try(1)
    assert not circuit.may_try(1.5)
    assert circuit.may_try(2)


def test_one_success_closes_the_circuit():
    """And the next pause is the shortest one again."""
    circuit = Circuit()
    for now in (0, 0, 0, 1, 3):
        circuit.may_try(now)
        circuit.failed(now)
    circuit.succeeded()
    assert circuit.may_try(3)
    for _ in range(3):
        circuit.failed(3)
    assert circuit.may_try(4)


class Stuck:
    """A store that never answers."""

    num_calls = 0

    async def get(self, key: str) -> bytes | None:
        self.num_calls += 1
        await asyncio.Event().wait()

    set = clear = size = close = get


async def test_a_stuck_store_gives_misses_and_is_soon_not_called():
    """Three look-ups wait for the time limit, the others do not wait."""
    stuck = Stuck()
    guarded = GuardedStore(stuck, timeout_s=0.01)
    began = asyncio.get_running_loop().time()
    for _ in range(1000):
        assert await guarded.get("a") is None
    assert stuck.num_calls == 3
    assert guarded.num_errors == 3
    assert asyncio.get_running_loop().time() - began < 5  # a thousand of 10 ms would be more


async def test_an_unexpected_error_is_not_hidden():
    """A bug of ours must not look like an unavailable store."""

    class Wrong(Stuck):
        async def get(self, key: str) -> bytes | None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await GuardedStore(Wrong(), timeout_s=1).get("a")


def test_the_cache_reads_no_pickles():
    """Other programs may write to a store: its content must never be executed."""
    for path in (PROJECT / "serve_app" / "cache").glob("*.py"):
        assert "pickle" not in path.read_text()
