"""Finds an engine that has stopped working while its health check still says 200.

While the engine is idle, its known question is asked now and then. While it is busy, a question
would only queue; then its own token counters must move.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from deployments.engine import EngineFailed
from deployments.engine_http import engine_session
from deployments.golden import GoldenAnswer
from deployments.residency import GOLDEN_MISMATCH, Problem
from serve_app.settings import Probing

_MAX_SILENT = 2  # a machine that is busy with something else makes one answer late
_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_PROGRESS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


@dataclass(frozen=True)
class Load:
    """An engine's own counts."""

    num_requests: float  # running and waiting
    num_tokens: float  # read and written since its start


def read_load(metrics: str) -> Load:
    """The counts in a page of vLLM's metrics."""
    num_requests = num_tokens = 0.0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            num_requests += sample.value * (sample.name in _BUSY)
            num_tokens += sample.value * (sample.name in _PROGRESS)
    return Load(num_requests, num_tokens)


async def watch(socket: Path, golden: GoldenAnswer, probing: Probing) -> Problem:
    """Watch until something is wrong; returns what."""
    loop = asyncio.get_running_loop()
    last = Load(0, -1)
    moved_at = loop.time()
    num_silent = 0
    while True:
        await asyncio.sleep(probing.interval_s)
        try:
            load = await _ask_load(socket, probing.timeout_s)
            if load.num_requests == 0:
                await golden.verify(socket, probing.timeout_s)
                moved_at = loop.time()
            elif load.num_tokens != last.num_tokens:
                moved_at = loop.time()
            elif loop.time() - moved_at > probing.stuck_after_s:
                return Problem(
                    "engine_stuck",
                    f"the engine has made no token for {probing.stuck_after_s:.0f} s "
                    f"with {load.num_requests:.0f} requests",
                )
            last, num_silent = load, 0
            continue
        except EngineFailed as exc:
            problem = exc.problem
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            problem = Problem("engine_mute", f"the engine does not answer ({type(exc).__name__})")
        num_silent += 1
        if problem.code == GOLDEN_MISMATCH or num_silent == _MAX_SILENT:
            return problem


async def _ask_load(socket: Path, timeout_s: float) -> Load:
    async with (
        engine_session(socket, timeout_s) as session,
        session.get("http://engine/metrics") as response,
    ):
        return read_load(await response.text())
