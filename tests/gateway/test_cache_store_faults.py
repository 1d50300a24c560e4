"""The cache's store is away, slow, wrong or full of garbage: a miss in time, and right answers."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from deployments.settings import Settings
from serve_app.launcher.ports import free_port
from tests.gateway.cached import Answer, ask, with_cache
from tests.gateway.conftest import B, Backend, until
from tests.gateway.fake_engine import TEXT

pytestmark = pytest.mark.timeout(150)

REDIS = shutil.which("redis-server")
PREFIX = "llm-backend:cache:"

needs_redis = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed")


class RedisServer:
    """A real one, on a port of its own."""

    def __init__(self, password: str | None = None) -> None:
        self.port, self._password = free_port(), password
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert REDIS
        line = [REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        line += ["--requirepass", self._password] if self._password else []
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    async def is_up(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    break
                except OSError:
                    await asyncio.sleep(0.01)  # it gives no sign of its own
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(getattr(request, "param", None))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """Somebody else who uses it."""
    await redis_server.is_up()
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


class Stub:
    """Takes connections and never says a word, or the same one to everybody."""

    def __init__(self, word: bytes) -> None:
        self.word, self.num_connections = word, 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.append(writer)
        writer.write(self.word)

    async def stop(self) -> None:
        for writer in self._writers:
            writer.close()
        self.server.close()
        await self.server.wait_closed()


@pytest.fixture
async def stub(request: pytest.FixtureRequest) -> AsyncIterator[Stub]:
    stub = Stub(getattr(request, "param", b""))
    await stub.start()
    yield stub
    await stub.stop()


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """The test's own store: a real Redis, a stub, or nobody."""
    for name in ("redis_server", "stub"):
        if name in request.fixturenames:
            url = request.getfixturevalue(name).url
            break
    else:
        url = f"redis://127.0.0.1:{free_port()}"
    shipped = {"timeout_s": settings.cache.timeout_s} if "stub" in request.fixturenames else {}
    return with_cache(settings, tmp_path, url, **shipped)


async def stats(backend: Backend) -> dict[str, Any]:
    async with backend.client.get("/admin/cache") as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def labels(backend: Backend, *, times: int) -> list[str]:
    """Of right answers to the same question."""
    answers = [await ask(backend) for _ in range(times)]
    assert {(a.status, a.text) for a in answers} == {(200, TEXT)}
    return [a.label for a in answers]


async def are_answered(backend: Backend, *, times: int) -> None:
    """As many different questions, rightly, all by the engine."""
    answers = [await ask(backend, max_tokens=100 + number) for number in range(times)]
    assert {(a.status, a.text, a.label) for a in answers} == {(200, TEXT, "miss")}


async def hit_again(backend: Backend) -> Answer:
    """Until the store is used again, by itself."""
    async with asyncio.timeout(60):
        while (answer := await ask(backend)).label != "hit":
            pass
    return answer


# --- a store that is not one ---


@pytest.mark.parametrize(
    "stub",
    [b"", b"garbage\r\n" * 10, b"$-5\r\n", b"*1000000000\r\n", b"\xff" * 100_000],
    indirect=True,
    ids=["silent", "garbage", "negative", "endless", "bytes"],
)
async def test_a_store_that_talks_nonsense_costs_little(backend: Backend, stub: Stub) -> None:
    """Right answers; after three look-ups no request waits for it any more."""
    engine = await backend.serving()
    began = time.monotonic()
    await are_answered(backend, times=20)
    # Three look-ups of 50 ms, and three of up to a second that nobody waits for.
    assert time.monotonic() - began < 15  # twenty of a second would be more
    assert len(engine.bodies) == 20
    assert stub.num_connections <= 12
    told = await stats(backend)
    assert told["state"] == "away"
    assert told["errors"] >= 3


@pytest.mark.parametrize("stub", [b""], indirect=True)
async def test_a_silent_store_is_a_miss_within_its_time(backend: Backend, stub: Stub) -> None:
    """The look-up's own time, measured where no engine adds to it."""
    store = backend.gateway.cache.store
    assert store
    for _ in range(3):
        began = time.monotonic()
        assert await store.get("k") is None
        assert 0.04 < time.monotonic() - began < 5  # 50 ms, on a machine that does other things
    began = time.monotonic()
    for _ in range(1000):
        assert await store.get("k") is None
    assert time.monotonic() - began < 20  # a thousand of 50 ms would be more


async def test_nobody_there_is_a_miss(backend: Backend) -> None:
    """Connections are refused."""
    await backend.serving()
    await are_answered(backend, times=5)
    async with backend.client.delete("/admin/cache") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "unavailable"


async def test_waiting_for_a_silent_store_ends_with_the_client(
    backend: Backend, stub: Stub
) -> None:
    """It leaves during the look-up: nothing is made for it."""
    await backend.serving(B)
    asking = asyncio.create_task(ask(backend))
    await until(lambda: stub.num_connections)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: not len(backend.gateway.cache.generations))
    assert not backend.admission.num_queued


# --- a real Redis ---


@needs_redis
@pytest.mark.parametrize("stream", [False, True])
async def test_redis_keeps_answers(backend: Backend, redis: Redis, stream: bool) -> None:
    """With a time to live, as JSON, under our prefix."""
    engine = await backend.serving()
    answers = [await ask(backend, stream=stream) for _ in range(3)]
    assert [a.label for a in answers] == ["miss", "hit", "hit"]
    assert {a.text for a in answers} == {TEXT}
    assert len(engine.bodies) == 1
    (key,) = await redis.keys("*")
    assert key.startswith(PREFIX.encode())
    assert 0 < await redis.ttl(key) <= 86400
    assert (await redis.get(key)).startswith(b'{"made_at":')


@needs_redis
async def test_redis_killed_and_started_again_is_used_again(
    backend: Backend, redis_server: RedisServer, redis: Redis
) -> None:
    """Answers are right all the while, and nobody does anything about it."""
    await backend.serving()
    assert await labels(backend, times=2) == ["miss", "hit"]
    redis_server.kill()
    await are_answered(backend, times=10)
    redis_server.start()
    await redis_server.is_up()
    assert (await hit_again(backend)).text == TEXT
    async with asyncio.timeout(60):  # that hit may be of an answer that is being stored just now
        while (await stats(backend))["state"] != "ok":
            pass


@needs_redis
async def test_redis_killed_while_many_ask_harms_none(
    backend: Backend, redis_server: RedisServer, redis: Redis
) -> None:
    """In the middle of look-ups and stores."""
    await backend.serving()

    async def asker(number: int) -> list[str | None]:
        return [(await ask(backend, seed=number % 3 * 100 + n)).text for n in range(20)]

    asking = [asyncio.create_task(asker(number)) for number in range(6)]
    await until(lambda: backend.gateway.cache.counts.stored >= 10)
    redis_server.kill()
    assert [text for texts in await asyncio.gather(*asking) for text in texts] == [TEXT] * 120
    assert (await stats(backend))["errors"] > 0


@needs_redis
@pytest.mark.parametrize(
    "garbage",
    [b"", b"garbage", b'{"made_at":1}', b"\x80\x04\x95", b"x" * 5_000_000],
    ids=["empty", "text", "json", "pickle", "huge"],
)
async def test_garbage_in_redis_is_a_miss_and_is_replaced(
    backend: Backend, redis: Redis, garbage: bytes
) -> None:
    """Whoever wrote it; also what is larger than a value can be."""
    await backend.serving()
    await ask(backend)
    (key,) = await redis.keys("*")
    await redis.set(key, garbage)
    assert await labels(backend, times=2) == ["miss", "hit"]
    assert (await stats(backend))["garbage"] == (1 if garbage else 0)


@needs_redis
async def test_a_key_of_another_type_is_a_miss_and_is_replaced(
    backend: Backend, redis: Redis
) -> None:
    """A list where an answer was."""
    await backend.serving()
    await ask(backend)
    (key,) = await redis.keys("*")
    await redis.delete(key)
    await redis.rpush(key, "x")
    assert await labels(backend, times=2) == ["miss", "hit"]


@needs_redis
async def test_clearing_leaves_what_is_not_ours(backend: Backend, redis: Redis) -> None:
    """The studio's other tools may share this Redis."""
    await backend.serving()
    await redis.set("render:queue", "42")
    await redis.mset({f"{PREFIX}{number}": "x" for number in range(1200)})
    await ask(backend)
    async with backend.client.delete("/admin/cache") as response:
        assert await response.json() == {"deleted": 1201}
    assert await redis.keys("*") == [b"render:queue"]
    assert (await ask(backend)).label == "miss"


@needs_redis
@pytest.mark.parametrize("redis_server", ["s3cret"], indirect=True)
async def test_a_refused_password_is_a_miss_and_is_shown_nowhere(
    backend: Backend, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the log nor in the stats."""
    await redis_server.is_up()
    await backend.serving()
    await are_answered(backend, times=5)
    told = await stats(backend)
    assert told["state"] == "away"
    assert told["url"] == redis_server.url
    assert "unavailable" in caplog.text
    assert str(redis_server.port) not in caplog.text


@needs_redis
@pytest.mark.parametrize("redis_server", ["s3cret"], indirect=True)
async def test_a_password_is_used_and_not_shown(
    settings: Settings, tmp_path: Path, redis_server: RedisServer
) -> None:
    """It opens the store; no representation of the settings holds it."""
    from serve_app.cache.responses import ResponseCache

    await redis_server.is_up()
    url = redis_server.url.replace("//", "//:s3cret@")
    own = with_cache(settings, tmp_path, url)
    assert "s3cret" not in repr(own)
    cache = ResponseCache(own)
    assert cache.store
    assert await cache.store.set("k", b"x")
    assert await cache.store.get("k") == b"x"
    assert "s3cret" not in str(await cache.stats())
    await cache.close()


@needs_redis
async def test_a_second_gateway_finds_what_the_first_has_kept(
    backend: Backend, settings: Settings, redis: Redis
) -> None:
    """That is what Redis is for."""
    from serve_app.cache.responses import ResponseCache

    await backend.serving()
    await ask(backend)
    first = backend.gateway.cache
    backend.gateway.cache = ResponseCache(settings)
    assert (await ask(backend)).label == "hit"
    await first.close()
