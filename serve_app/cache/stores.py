"""Stores that keep answers as bytes: each bounds its own size and forgets a value after `ttl_s`.

Memory and disk hold at most `max_bytes`. Redis is bounded by its own `maxmemory`, because other
programs may share it; for the same reason only keys with our prefix are touched.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from cachetools import TTLCache
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from deployments.settings import Cache

_PREFIX = "llm-backend:cache:"
_ENTRY_BYTES = 512  # Python's memory per entry beside the value: the key and the links
_NUM_CONNECTIONS = 16
_BATCH = 500

_T = TypeVar("_T")


class StoreFailed(Exception):
    """A store's operation failed. The message names no key and no address."""


class Store(Protocol):
    """A key-value store; each method raises StoreFailed when it fails."""

    async def get(self, key: str) -> bytes | None: ...
    async def set(self, key: str, value: bytes) -> None: ...
    async def clear(self) -> int | None:
        """Delete all answers; return their number, None if the store does not know it."""

    async def size(self) -> tuple[int, int] | None:
        """Return the number of entries and bytes, None if counting them would be expensive."""

    async def close(self) -> None: ...


def open_store(settings: Cache) -> Store | None:
    """Return the store that `cache.url` names; it connects to nothing before its first use."""
    if settings.url is None:
        return None
    url = settings.url.get_secret_value()
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryStore(settings.max_bytes, settings.ttl_s)
    if scheme == "disk":
        return DiskStore(Path(urlsplit(url).path), settings.max_bytes, settings.ttl_s)
    return RedisStore(url, settings.max_value_bytes, settings.ttl_s)


class MemoryStore:
    """Keeps answers in this process; a full store drops the least recently used answer first."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._values: TTLCache[str, bytes] = TTLCache(
            max_bytes, ttl_s, time.monotonic, getsizeof=lambda value: len(value) + _ENTRY_BYTES
        )

    async def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    async def set(self, key: str, value: bytes) -> None:
        if len(value) + _ENTRY_BYTES <= self._values.maxsize:
            self._values[key] = value

    async def clear(self) -> int:
        self._values.expire()
        num_entries = len(self._values)
        self._values.clear()
        return num_entries

    async def size(self) -> tuple[int, int]:
        self._values.expire()
        return len(self._values), int(self._values.currsize)

    async def close(self) -> None:
        self._values.clear()


class DiskStore:
    """Keeps answers in one SQLite file, in a folder that only its owner can read.

    A full store drops the oldest answers first. All work runs in one thread. A damaged file is
    replaced: all it held can be generated again.
    """

    def __init__(self, folder: Path, max_bytes: int, ttl_s: float) -> None:
        self._path = folder / "answers.sqlite3"
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        self._thread = ThreadPoolExecutor(1, "cache")
        self._database: sqlite3.Connection | None = None

    async def get(self, key: str) -> bytes | None:
        return await self._run(lambda db: _find(db, key))

    async def set(self, key: str, value: bytes) -> None:
        await self._run(lambda db: self._put(db, key, value))

    async def clear(self) -> int:
        return await self._run(lambda db: db.execute("DELETE FROM answers").rowcount)

    async def size(self) -> tuple[int, int]:
        return await self._run(lambda db: (_num_entries(db), _used_bytes(db)))

    async def close(self) -> None:
        """Close the file, without waiting for a disk that hangs."""
        self._thread.submit(self._forget)
        self._thread.shutdown(wait=False)

    async def _run(self, act: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._act, act)

    def _act(self, act: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            with self._opened() as database:
                return act(database)
        except sqlite3.OperationalError as exc:  # locked, full or read-only: the file is intact
            self._forget()
            raise StoreFailed(type(exc).__name__) from exc
        except sqlite3.DatabaseError as exc:
            self._forget()
            self._path.unlink(missing_ok=True)
            raise StoreFailed(type(exc).__name__) from exc
        except OSError as exc:
            raise StoreFailed(type(exc).__name__) from exc

    def _opened(self) -> sqlite3.Connection:
        # SQLite does not notice that its file was deleted.
        if self._database is None or not self._path.exists():
            self._forget()
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._database = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
            self._database.executescript(
                "PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL;"
                "CREATE TABLE IF NOT EXISTS answers"
                " (key TEXT PRIMARY KEY, expires_at REAL NOT NULL, value BLOB NOT NULL);"
                "CREATE INDEX IF NOT EXISTS by_age ON answers (expires_at);"
            )
        return self._database

    def _forget(self) -> None:
        if self._database:
            self._database.close()
            self._database = None

    def _put(self, database: sqlite3.Connection, key: str, value: bytes) -> None:
        now = time.time()
        row = (key, now + self._ttl_s, value)
        database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        database.execute("DELETE FROM answers WHERE expires_at <= ?", (now,))
        while _used_bytes(database) > self._max_bytes:
            oldest = "SELECT key FROM answers ORDER BY expires_at LIMIT 20"
            if not database.execute(f"DELETE FROM answers WHERE key IN ({oldest})").rowcount:  # noqa: S608  no input in it
                return


class RedisStore:
    """Keeps answers in Redis, over a pool that connects when it needs to."""

    def __init__(self, url: str, max_value_bytes: int, ttl_s: float) -> None:
        self._last_byte, self._ttl_ms = max_value_bytes, max(1, int(ttl_s * 1000))
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_NUM_CONNECTIONS,
            # Retry once, immediately: a connection from before a restart of Redis is dead.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = Redis.from_pool(pool)

    async def get(self, key: str) -> bytes | None:
        """Read at most one byte more than our largest value, since other programs may write too."""
        with _failing_as_store():
            value = await self._redis.getrange(_PREFIX + key, 0, self._last_byte)
        return (value.encode() if isinstance(value, str) else value) or None

    async def set(self, key: str, value: bytes) -> None:
        with _failing_as_store():
            await self._redis.set(_PREFIX + key, value, px=self._ttl_ms)

    async def clear(self) -> int:
        num_entries, keys = 0, list[bytes]()
        with _failing_as_store():
            async for key in self._redis.scan_iter(match=_PREFIX + "*", count=_BATCH):
                keys.append(key)
                if len(keys) >= _BATCH:
                    num_entries += await self._redis.unlink(*keys)
                    keys.clear()
            num_entries += await self._redis.unlink(*keys) if keys else 0
        return num_entries

    async def size(self) -> None:
        """Return None: other programs' keys lie beside ours, so counting would scan them all."""
        return

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)


@contextmanager
def _failing_as_store() -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # a server that is not Redis can make the parser raise anything
        raise StoreFailed(type(exc).__name__) from exc


def _find(database: sqlite3.Connection, key: str) -> bytes | None:
    query = "SELECT value FROM answers WHERE key = ? AND expires_at > ?"
    row = database.execute(query, (key, time.time())).fetchone()
    return row[0] if row and isinstance(row[0], bytes) else None


def _num_entries(database: sqlite3.Connection) -> int:
    (count,) = database.execute("SELECT COUNT(*) FROM answers").fetchone()
    return int(count)


def _used_bytes(database: sqlite3.Connection) -> int:
    """Return the size of the pages in use, in bytes."""
    names = ("page_count", "freelist_count", "page_size")
    count, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((count - free) * size)
