"""Finds an engine that has stopped working while its health check still says 200.

The watchdog asks an idle engine its known question now and then. It judges whether an engine that
owes an answer is dead or only slow by the work of its threads (`liveness.py`), never by how long
the answer takes.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from deployments.engine import gpu_lock
from deployments.engine.client import engine_session
from deployments.engine.events import EngineFailed
from deployments.model_server.golden import GoldenAnswer
from deployments.model_server.liveness import Judge, Look
from deployments.residency import GOLDEN_MISMATCH, Problem
from deployments.settings import Probing

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MAX_ERRORS = 2  # after an error the question is asked once more
_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
# Some of these change with each step of a long prompt too, whose tokens count only at its end.
_PROGRESS = (
    *_BUSY,
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:kv_cache_usage_perc",
)


def read_counts(metrics: str) -> dict[str, float]:
    """Read the counts of `_PROGRESS` from vLLM's metrics page."""
    counts = dict.fromkeys(_PROGRESS, 0.0)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in counts:
                counts[sample.name] += sample.value
    return counts


async def first_answer(socket: Path, session: int, golden: GoldenAnswer, probing: Probing) -> None:
    """Ask a new engine its known question; wait while the engine works. Raises EngineFailed."""
    question = _start(golden.verify(socket, None))
    watching = _start(watch(socket, session, golden, probing, question))
    try:
        await asyncio.wait({question, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not question.done():
            raise EngineFailed(watching.result())
        await question
    finally:
        for task in (question, watching):
            task.cancel()
        await asyncio.gather(question, watching, return_exceptions=True)


async def watch(
    socket: Path,
    session: int,
    golden: GoldenAnswer,
    probing: Probing,
    question: asyncio.Task[None] | None = None,
) -> Problem:
    """Watch the engine until something is wrong; returns the problem.

    `session` is the engine's session id, which is its API server's pid. `question` is a known
    question that was asked before and is not answered yet.
    """
    loop = asyncio.get_running_loop()
    judge = Judge(probing.still_after_s, probing.stuck_after_s)
    work = _Work(session)
    num_errors = 0
    try:
        while True:
            counts = await _ask_counts(socket, probing.interval_s)
            if question and question.done():
                problem = _problem_of(question)
                question = None
                num_errors = num_errors + 1 if problem else 0
                if problem and (problem.code == GOLDEN_MISMATCH or num_errors == _MAX_ERRORS):
                    return problem
            is_busy = counts is not None and any(counts[name] for name in _BUSY)
            is_owing = is_busy or question is not None
            if counts and not is_owing:
                question = _start(golden.verify(socket, None))
            server_s, core_s = await asyncio.to_thread(work.since_last)
            values = tuple(counts.values()) if counts else None
            problem = judge.problem(Look(loop.time(), values, is_owing, server_s, core_s))
            if problem:
                return problem
            await asyncio.sleep(probing.interval_s)
    finally:
        if question:
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)


def _start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


def _problem_of(question: asyncio.Task[None]) -> Problem | None:
    try:
        question.result()
    except EngineFailed as exc:
        return exc.problem
    return None


async def _ask_counts(socket: Path, timeout_s: float) -> dict[str, float] | None:
    """The engine's counts; None if it does not answer in time, which may only mean it is slow."""
    try:
        async with (
            engine_session(socket, timeout_s) as session,
            session.get("/metrics") as response,
        ):
            return read_counts(await response.text())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


class _Work:
    """Measures the work of one session's processes; reads /proc, which takes milliseconds."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._seen: dict[tuple[int, int], float] = {}
        self._looked_at = time.monotonic()
        self.since_last()

    def since_last(self) -> tuple[float, float]:
        """Seconds that threads ran or waited for a core or a disk since the last call: in the
        session's first process, and in all the others."""
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        seen: dict[tuple[int, int], float] = {}
        server_s = core_s = 0.0
        for process in gpu_lock.session_members(self._session):
            for thread in Path(f"/proc/{process.pid}/task").glob("*"):
                key = (process.pid, int(thread.name))
                with contextlib.suppress(OSError):  # the thread has ended
                    seen[key], is_held_up = _read(thread)
                    worked_s = seen[key] - self._seen.get(key, 0.0) + passed_s * is_held_up
                    if process.pid == self._session:
                        server_s += worked_s
                    else:
                        core_s += worked_s
        self._seen = seen
        return server_s, core_s


def _read(thread: Path) -> tuple[float, bool]:
    """Seconds that the thread has run or waited for a core, and whether it waits for a disk now.

    Some kernels keep no waiting times, only running times: there, an engine that gets no core at
    all counts as dead.

    Source: the kernel's Documentation/scheduler/sched-stats.rst (nanoseconds), proc_pid_stat(5).
    """
    state, *fields = (thread / "stat").read_text().rpartition(") ")[2].split()
    ran_s = (int(fields[10]) + int(fields[11])) / _TICKS_PER_S
    try:
        ran_ns, waited_ns, _ = (thread / "schedstat").read_text().split()
    except FileNotFoundError:
        return ran_s, state == "D"
    return max(ran_s, (int(ran_ns) + int(waited_ns)) / 1e9), state == "D"
