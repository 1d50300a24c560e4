"""One model's deployment: its replica is the right to the GPU, and owns one engine's life.

It never sees a request; the gateway talks to the engine's socket.
"""

from collections.abc import AsyncIterator
from pathlib import Path

from deployments import checkpoint, golden
from deployments.checkpoint import CheckpointProblem
from deployments.engine import (
    EngineEvent,
    EngineFailed,
    EngineGone,
    EngineReady,
    EngineStarted,
    EngineVerifying,
)
from deployments.lifeline import end_with_parent
from deployments.vllm_engine import VllmEngine
from serve_app.settings import ModelSpec, Settings


class ModelServer:
    """Holds the engine of one model while its replica lives."""

    def __init__(self, settings: Settings, model: str) -> None:
        end_with_parent()
        self._settings = settings
        self._spec: ModelSpec = settings.models[model]
        self._home = Path(settings.home)
        self._engine: VllmEngine | None = None
        self._is_verified = False

    async def hold(self, epoch: int) -> AsyncIterator[EngineEvent]:
        """Start the engine of `epoch`, and tell of it until it is gone.

        Called again for an engine that serves, it tells of that one.
        """
        engine = self._engine
        if engine is None or engine.epoch != epoch:
            engine = VllmEngine(self._spec, epoch, self._home)
            self._engine, self._is_verified = engine, False
            try:
                async for event in self._load(engine):
                    yield event
            except EngineFailed as exc:
                yield EngineGone(exc.problem)
                return
            except CheckpointProblem as exc:
                yield EngineGone(exc.problem)
                return
        if self._is_verified:
            yield EngineReady(str(engine.socket))
        await engine.ended.wait()
        yield EngineGone(engine.why_ended())

    async def _load(self, engine: VllmEngine) -> AsyncIterator[EngineEvent]:
        folder = checkpoint.locate(self._spec, self._home)
        switching = self._settings.switching
        await engine.start(folder, self._settings.device, grace_s=switching.unload_timeout_s)
        yield EngineStarted(engine.pid)
        await engine.wait_ready(switching.load_timeout_s)
        yield EngineVerifying()
        await golden.verify(engine.socket, self._spec)
        self._is_verified = True

    async def describe(self) -> tuple[int, str] | None:
        """Epoch and socket of the engine that serves here, if one does."""
        engine = self._engine
        if engine is None or not self._is_verified or engine.ended.is_set():
            return None
        return engine.epoch, str(engine.socket)

    async def release(self) -> None:
        """End the engine; returns when nothing of it is left."""
        if self._engine and self._engine.pid:
            await self._engine.stop()

    async def check_health(self) -> None:
        """Serve's health check: the replica is as good as its engine."""
        if self._engine and self._is_verified and self._engine.ended.is_set():
            raise RuntimeError(self._engine.why_ended().message)
