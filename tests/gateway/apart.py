"""A gateway in a process of its own before a fake engine in another, so that the time and memory
that a request takes there are the gateway's alone.

It obeys lines on its standard input: the name of what is to be resident, or `collect`.
"""

import asyncio
import ctypes
import gc
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import psutil
from aiohttp import web

from tests.gateway.conftest import Front, until
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.fake_switchboard import FakeSwitchboard
from tests.gateway.good_requests import MODEL

# ruff: isort: split
from deployments.settings import AppArgs, load_settings
from serve_app.gateway.gateway import Gateway
from serve_app.ingress import build_http


@dataclass
class Apart:
    """The gateway's process, as seen from the test's."""

    process: subprocess.Popen[str]
    port: int

    def __post_init__(self) -> None:
        self.stats = psutil.Process(self.process.pid)

    def obey(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def rss_bytes(self) -> int:
        """What it holds after a garbage collection."""
        self.obey("collect")
        return int(self.stats.memory_info().rss)

    def cpu_s(self) -> float:
        times = self.stats.cpu_times()
        return float(times.user + times.system)


@contextmanager
def gateway_apart() -> Iterator[Apart]:
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "engine.sock")
        with _started("engine", socket) as engine, _started("gateway", socket) as gateway:
            assert engine.stdout
            assert gateway.stdout
            assert engine.stdout.readline()
            yield Apart(gateway, int(gateway.stdout.readline()))


@contextmanager
def _started(*args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        try:
            process.communicate(timeout=5)  # its input ends, and so does it
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _orders(file: asyncio.StreamReader) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(file), sys.stdin)
    return file


class QuotingEngine(FakeEngine):
    """It refuses a number that is none and quotes the whole request, as xgrammar does."""

    async def _answer(self, request: web.Request, body: Any) -> web.StreamResponse:
        if b"1e999" not in self.bodies[-1]:
            return await super()._answer(request, body)
        error = {"message": f"Invalid JSON schema: {body!r}", "type": "BadRequestError"}
        return web.json_response({"error": error | {"param": None, "code": 400}}, status=400)


async def serve_engine(socket: str) -> None:
    engine = QuotingEngine(socket, MODEL)
    engine.bodies = deque(maxlen=1)  # type: ignore[assignment]
    await engine.start()
    print("listens", flush=True)
    await (await _orders(asyncio.StreamReader())).read()
    await engine.stop()


async def serve_gateway(socket: str) -> None:
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    own = settings.model_copy(update={"models": {MODEL: settings.models[MODEL]}})
    switchboard, front = FakeSwitchboard(), Front()
    # asyncio sets it only on sockets that name their protocol; without, /health takes 40 ms more
    front.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    gateway = Gateway(own, switchboard)
    front.app = build_http(gateway)
    serving = asyncio.create_task(front.server.serve(sockets=[front.socket]))
    orders = await _orders(asyncio.StreamReader())
    print(front.port, flush=True)
    while line := (await orders.readline()).decode().strip():
        if line == "collect":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free, and only kept by the allocator
        else:
            await switchboard.serve(line, socket, switchboard.view.epoch + 1)
            await until(lambda: gateway.admission.view is switchboard.view)
        print("done", flush=True)
    front.server.should_exit = front.server.force_exit = True
    await serving
    await gateway.close()


if __name__ == "__main__":
    kind, path = sys.argv[1:]
    asyncio.run({"engine": serve_engine, "gateway": serve_gateway}[kind](path))
