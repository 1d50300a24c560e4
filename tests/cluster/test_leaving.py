"""Clients that leave the real server: gone from the gateway and from vLLM, and nothing spins."""

import re
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cluster.server import Server, wait_until
from tests.raw import Leaving, RawClient, request

LONG = {
    "model": "qwen-14b",
    "messages": [{"role": "user", "content": "Count from one to a thousand, in words."}],
    "max_tokens": 4000,
    "min_tokens": 4000,
}
_RUNNING = re.compile(r"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)
_SPINNING = 0.3  # of a core: HAProxy took 0.5 to 0.9 of one until the answer was done


def num_running(server: Server) -> float:
    """As vLLM counts them, on its own socket."""
    (socket,) = [
        path for path in server.home.rglob("*.sock") if path.name in server.watch().engines()
    ]
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as engine:
        return sum(map(float, _RUNNING.findall(engine.get("http://engine/metrics").text)))


def cpu_s(processes: list[psutil.Process]) -> float:
    """What they have taken so far, of `/proc/<pid>/stat`."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


@pytest.mark.parametrize("way", Leaving)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_is_gone(server: Server, way: Leaving, stream: bool) -> None:
    """Head and body came in two segments; the answer has begun, and takes minutes."""
    proxies = [p for p in server.family() if p.name() == "haproxy"]
    assert proxies
    port = int(server.url.rpartition(":")[2])
    async with await RawClient.connect(port) as client:
        await client.send(*request("/v1/chat/completions", LONG | {"stream": stream}))
        wait_until(lambda: num_running(server) == 1, 60, "the engine runs it")
        client.leave(way)
        wait_until(lambda: not server.get("/health")["in_flight"], 60, "the gateway has let it go")
        wait_until(lambda: not num_running(server), 60, "the engine has let it go")
        began, spent = time.monotonic(), cpu_s(proxies)
        wait_until(lambda: time.monotonic() - began > 1, 60, "a second to measure in")
        assert (cpu_s(proxies) - spent) / (time.monotonic() - began) < _SPINNING
