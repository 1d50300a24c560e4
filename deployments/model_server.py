"""One model's deployment: its replica is the right to the GPU, and owns one engine's life.

It never sees a request; the gateway talks to the engine's socket.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from deployments import checkpoint, watchdog
from deployments.checkpoint import CheckpointProblem
from deployments.engine import (
    EngineEvent,
    EngineFailed,
    EngineGone,
    EngineReady,
    EngineStarted,
    EngineVerifying,
)
from deployments.golden import GoldenAnswer
from deployments.gpu_memory import open_card, wait_until_memory_freed
from deployments.lifeline import end_with_parent
from deployments.residency import Problem
from deployments.vllm_engine import VllmEngine
from serve_app.settings import Settings

# The first answer of a fresh engine on a GPU compiles kernels.
_FIRST_ANSWER_TIMEOUT_S = 120.0


class ModelServer:
    """Holds the engine of one model while its replica lives."""

    def __init__(self, settings: Settings, model: str) -> None:
        end_with_parent()
        self._settings = settings
        self._model = model
        self._home = Path(settings.home)
        self._engine: VllmEngine | None = None
        self._watching: asyncio.Task[None] | None = None  # set once the engine is verified
        self._problem: Problem | None = None  # why it was killed here

    async def hold(self, epoch: int, target: str) -> AsyncIterator[EngineEvent]:
        """Start the engine of `epoch` for `target`, one of its model's, and tell of it until it is
        gone.

        Called again for an engine that serves, it tells of that one.
        """
        engine = self._engine
        if engine is None or engine.epoch != epoch:
            spec = self._settings.targets[target]
            assert spec.name == self._model, target
            engine = VllmEngine(spec, epoch, self._home)
            self._engine, self._watching, self._problem = engine, None, None
            try:
                async for event in self._load(engine):
                    yield event
            except (EngineFailed, CheckpointProblem) as exc:
                yield EngineGone(exc.problem)
                return
        if self._watching:
            yield EngineReady(str(engine.socket))
        await engine.ended.wait()
        yield EngineGone(self._problem or engine.why_ended())

    async def _load(self, engine: VllmEngine) -> AsyncIterator[EngineEvent]:
        spec = engine.spec
        folder = checkpoint.locate(spec, self._home)
        device, switching = self._settings.device, self._settings.switching
        share = spec.engine.gpu_memory_utilization
        if device == "cuda" and share:
            card = open_card(os.environ.get("CUDA_VISIBLE_DEVICES"))
            if card:
                await wait_until_memory_freed(card, share, switching.unload_timeout_s)
        await engine.start(folder, device, grace_s=switching.unload_timeout_s)
        yield EngineStarted(engine.pid)
        await engine.wait_ready(switching.load_timeout_s)
        yield EngineVerifying()
        golden = GoldenAnswer(spec, folder, device, self._home)
        await golden.verify(engine.socket, _FIRST_ANSWER_TIMEOUT_S)
        self._watching = asyncio.get_running_loop().create_task(self._watch(engine, golden))

    async def _watch(self, engine: VllmEngine, golden: GoldenAnswer) -> None:
        """Kill the engine when it no longer works; its end is then told with the reason."""
        problem = await watchdog.watch(engine.socket, golden, self._settings.probing)
        if not engine.ended.is_set():
            self._problem = problem
            engine.kill()

    async def describe(self) -> tuple[str, int, str] | None:
        """Target, epoch and socket of the engine that serves here, if one does."""
        engine = self._engine
        if engine is None or not self._watching or engine.ended.is_set():
            return None
        return engine.spec.target, engine.epoch, str(engine.socket)

    async def release(self) -> None:
        """End the engine; returns when nothing of it is left."""
        if self._watching:
            self._watching.cancel()
        if self._engine and self._engine.pid:
            await self._engine.stop()

    async def check_health(self) -> None:
        """Serve's health check: the replica is as good as its engine."""
        if self._engine and self._watching and self._engine.ended.is_set():
            raise RuntimeError((self._problem or self._engine.why_ended()).message)
