"""Other programs take every core: what is slow is not ended, and what is dead is found."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.cluster.server import Server

pytestmark = pytest.mark.timeout(600)

LOOPS_A_CORE = 10
# More tokens than one step takes, and a different beginning each time: none of it is cached.
LONG_PROMPT = "{} " + "The quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture(scope="module")
def server(server: Server) -> Server:
    server.switch("qwen-coder")  # the first start of each records its answer
    server.switch("qwen-14b")
    return server


@contextmanager
def every_core_taken() -> Iterator[None]:
    loops = [
        # of a session each: the kernel may share the cores among sessions first
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        for _ in range(LOOPS_A_CORE * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def finish_reason(server: Server, prompt: str) -> str | None:
    """Of one streamed answer, read to its end."""
    reason = None
    body = {
        "model": "qwen-14b",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 8,
        "stream": True,
    }
    with server.http as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                reason = next((c["finish_reason"] for c in event["choices"]), None) or reason
    return reason


def stream_until(server: Server, ends_at: float, client: int) -> list[str | None]:
    reasons = []
    while not reasons or time.monotonic() < ends_at:
        reasons.append(finish_reason(server, LONG_PROMPT.format(f"{client}.{len(reasons)}")))
    return reasons


@pytest.mark.parametrize("seconds", [5, pytest.param(120, marks=pytest.mark.drill)])
def test_busy_machine_ends_no_engine_and_cuts_no_request(server: Server, seconds: float) -> None:
    """Ten busy loops a core, under two clients that stream; then a switch, for which they end."""
    epoch = server.get("/health")["epoch"]
    with every_core_taken(), ThreadPoolExecutor() as pool:
        ends_at = time.monotonic() + seconds
        streams = [pool.submit(stream_until, server, ends_at, client) for client in range(2)]
        for stream in streams:
            reasons = stream.result()
            assert set(reasons) <= {"stop", "length"}, reasons
        assert server.get("/health")["epoch"] == epoch
        ticket = server.switch("qwen-coder").json()
        assert ticket["state"] == "done", ticket
    assert server.get("/health")["epoch"] == epoch + 1
    assert "Paris" in server.chat("qwen-coder").text
    assert server.switch("qwen-14b").json()["state"] == "done"


@pytest.mark.drill
def test_stopped_engine_is_found_on_a_busy_machine(server: Server) -> None:
    """The machine's load is no excuse: it does not even wait for a core."""
    epoch = server.get("/health")["epoch"]
    (engine,) = server.watch().engines().values()
    core = next(p for p in engine if "EngineCore" in " ".join(p.cmdline()))
    with every_core_taken():
        core.send_signal(signal.SIGSTOP)
        server.wait_serving("qwen-14b", timeout_s=400, after_epoch=epoch)
    assert not core.is_running()
