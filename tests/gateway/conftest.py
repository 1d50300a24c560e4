"""A gateway behind a real uvicorn server, between a fake Switchboard and fake engines."""

import asyncio
import json
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.residency import State
from deployments.switchboard.deployment import Switchboard
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.fake_switchboard import FakeSwitchboard
from tests.gateway.sse import Stream, check
from tests.pure.switchboard.fake_host import FakeReplicas

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60's own, under pydantic 2.14
    from ray.serve._private.http_util import RequestIdMiddleware

    from tests.gateway import proxied
from deployments.settings import AppArgs, Settings, load_settings
from serve_app.gateway.gateway import Gateway
from serve_app.ingress import build_http
from serve_app.protocol.asgi import chunk, start

A, B = "qwen-14b", "qwen-coder"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


class Front:
    """One server for all tests; each puts its own gateway's application behind it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.num_active = 0  # requests that the applications still work on
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        config = uvicorn.Config(self, lifespan="off", ws="none", log_level="critical")
        self.server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app
        if scope.get("path") == "/-/healthz":  # Serve answers HAProxy's health check itself
            await _nothing(scope, receive, send)
        else:
            self.num_active += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.num_active -= 1


class Backend:
    """One gateway, what surrounds it, and a client."""

    def __init__(self, gateway: Gateway, switchboard: FakeSwitchboard, port: int) -> None:
        self.gateway, self.switchboard, self.port = gateway, switchboard, port
        self.admission = gateway.admission
        self.client = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=0)
        )
        self.things = AsyncExitStack()
        self._folder = Path(self.things.enter_context(tempfile.TemporaryDirectory()))
        self._num_engines = 0

    async def engine(self, model: str = A) -> FakeEngine:
        """A new engine that nobody knows of yet."""
        self._num_engines += 1
        engine = FakeEngine(str(self._folder / f"{self._num_engines}.sock"), model)
        await engine.start()
        self.things.push_async_callback(engine.stop)
        return engine

    async def serving(self, model: str = A, epoch: int = 1) -> FakeEngine:
        """A new engine that the view names."""
        engine = await self.engine(model)
        await self.serve(engine, epoch)
        return engine

    async def serve(self, engine: FakeEngine, epoch: int) -> None:
        await self.switchboard.serve(engine.model, engine.path, epoch)
        await self.in_step()

    async def show(self, **changes: Any) -> None:
        await self.switchboard.show(**changes)
        await self.in_step()

    async def fail(self, model: str, seq: int, retry_after_s: float = 60) -> None:
        await self.switchboard.fail(model, seq, retry_after_s)
        await self.in_step()

    async def cut(self) -> None:
        """The drain deadline has passed."""
        await self.show(state=State.DRAINING, is_cut=True)

    async def in_step(self) -> None:
        """Until the gateway acts on the present view."""
        await until(lambda: self.admission.view is self.switchboard.view)

    async def chat(self, *, model: str = A, **fields: Any) -> aiohttp.ClientResponse:
        """The response as soon as its head is there."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        return await self.client.post(CHAT, json=body)

    def asking(self, **fields: Any) -> asyncio.Task[tuple[int, bytes]]:
        """A whole plain chat, in a task: status and body."""
        return asyncio.create_task(self._ask(fields))

    async def _ask(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        async with await self.chat(**fields) as response:
            return response.status, await response.read()

    def streaming(self, **fields: Any) -> asyncio.Task[Stream]:
        """A whole stream that keeps the rules, in a task."""
        return asyncio.create_task(self._stream(fields))

    async def _stream(self, fields: dict[str, Any]) -> Stream:
        async with await self.chat(stream=True, **fields) as response:
            assert response.status == 200, await response.text()
            raw = await response.read()
            return check(response.headers["content-type"], raw, fields.get("n", 1))

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection over which `data` has been sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.things.callback(writer.close)
        writer.write(data)
        return reader, writer

    async def idle(self, deadline_s: float = 2) -> None:
        """Until nothing is in flight and nobody waits."""
        await until(
            lambda: not self.admission.num_in_flight and not self.admission.num_queued, deadline_s
        )

    async def close(self) -> None:
        await self.client.close()
        await self.things.aclose()
        await self.idle()  # whatever the test did, no permit is left behind
        assert not any(task.done() for task in self.gateway._tasks), "a gateway's loop has died"
        await self.gateway.close()


class Whole:
    """Two engines, their host, the Switchboard, a gateway, and a client."""

    def __init__(self, front: Front, settings: Settings, folder: Path) -> None:
        self.engines = {m: FakeEngine(str(folder / f"{m}.sock"), m) for m in (A, B)}
        self.host = FakeReplicas()
        self.host.sockets = {model: engine.path for model, engine in self.engines.items()}
        own = settings.model_copy(update={"home": folder, "default_model": A})
        self.board = Switchboard(own, self.host)
        self.gateway = Gateway(own, self.board)
        front.app = build_http(self.gateway)
        self.url = f"http://127.0.0.1:{front.port}"
        self.client = aiohttp.ClientSession(self.url)

    def chat(self, model: str, stream: bool = False, **headers: str) -> Any:
        body = {"model": model, "messages": MESSAGES, "stream": stream}
        named = {"X-" + name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(CHAT, json=body, headers=named)


async def until(is_true: Callable[[], object], deadline_s: float = 60) -> None:
    """Run the loop until `is_true`, or fail."""
    async with asyncio.timeout(deadline_s):
        while not is_true():  # noqa: ASYNC110 (a count has no event to wait for)
            await asyncio.sleep(0)


def error_of(body: bytes) -> dict[str, Any]:
    """The error of an OpenAI-shaped body that tells nothing of our inside."""
    assert len(body) < 8192
    assert b"Traceback" not in body
    assert b".py" not in body
    value = json.loads(body)
    assert set(value) == {"error"}
    assert set(value["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = value["error"]
    return error


@pytest.fixture(scope="session")
async def front() -> AsyncIterator[Front]:
    front = Front()
    serving = asyncio.create_task(front.server.serve(sockets=[front.socket]))
    yield front
    front.server.should_exit = front.server.force_exit = True
    await serving


@pytest.fixture(scope="session")
def settings() -> Settings:
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    small = {"max_in_service": 2, "max_queued": 4, "request_timeout_s": 60, "max_body_bytes": 2**22}
    return settings.model_copy(update={"limits": settings.limits.model_copy(update=small)})


@pytest.fixture
async def limits() -> dict[str, Any]:
    """What a test sets beyond the small limits; overridden by `@pytest.mark.parametrize`."""
    return {}


@pytest.fixture
async def backend(
    front: Front, settings: Settings, limits: dict[str, Any]
) -> AsyncIterator[Backend]:
    own = settings.limits.model_copy(update=limits)
    switchboard = FakeSwitchboard()
    gateway = Gateway(settings.model_copy(update={"limits": own}), switchboard)
    front.app = build_http(gateway)
    backend = Backend(gateway, switchboard, front.port)
    await backend.in_step()
    yield backend
    await backend.close()
    with suppress(TimeoutError):  # its last log lines are not the next test's
        await until(lambda: not front.num_active, deadline_s=5)


@pytest.fixture(scope="session")
async def haproxy(front: Front) -> AsyncIterator[proxied.Proxy]:
    """One for all tests, before the one server."""
    front.app = _nothing
    async with proxied.running(front.port) as proxy:
        yield proxy


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start(200, {"content-length": "0"}))
    await send(chunk(b"", is_last=True))


@pytest.fixture
async def proxy(front: Front, backend: Backend, haproxy: proxied.Proxy) -> proxied.Proxy:
    """The real HAProxy in front of the backend's gateway, which runs as Serve's replica runs it."""
    app = build_http(backend.gateway, is_behind_serve=True)
    front.app = RequestIdMiddleware(app)  # as Serve's replica does
    return haproxy


@pytest.fixture
async def whole(front: Front, settings: Settings, tmp_path: Path) -> AsyncIterator[Whole]:
    whole = Whole(front, settings, tmp_path)
    for engine in whole.engines.values():
        await engine.start()
    await until(lambda: whole.gateway.admission.is_resident(A))
    yield whole
    await whole.client.close()
    await whole.gateway.close()
    await whole.board.close()
    for engine in whole.engines.values():
        await engine.stop()
    assert not whole.host.loaded_while_other_resident
