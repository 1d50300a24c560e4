"""What the Switchboard can do to the world: check a model, hold an engine, release it.

`Host` is the seam its tests replace; `ServeHost` does it with Ray Serve.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments import checkpoint, scaling
from deployments.engine import EngineEvent, EngineGone, EngineReady
from deployments.engine_args import OFFLINE
from deployments.residency import Problem
from deployments.scaling import ReplicaScaler, ScalingFailed
from deployments.standby import StandbyKeeper
from deployments.vllm_engine import base_environment
from serve_app.settings import Settings

_SCALE_TIMEOUT_S = 30.0
# Its imports take 8 s on two idle cores, and a plain start three times that.
_STANDBY_READY_S = 45.0
_CHUNK_BYTES = 8 * 1024 * 1024


class Host(Protocol):
    """The Switchboard's hands."""

    async def check(self, target: str) -> None:
        """Check the model's files. Raises CheckpointProblem."""

    async def prepare(self, target: str) -> None:
        """Check the model's files and read them ahead. Raises CheckpointProblem."""

    def hold(self, target: str, epoch: int) -> AsyncIterator[EngineEvent]:
        """Start an engine and tell of it; the last event is EngineGone."""

    async def release(self, target: str) -> None:
        """End the engine and its replica; returns when both are gone, or at a bound."""

    async def find_running(self) -> tuple[str, int, str] | None:
        """Target, epoch and socket of the engine that serves already, if one does."""

    def dashboard_url(self) -> str:
        """Where the cluster can be looked at."""


class ServeHost:
    """The host on Ray Serve: replicas are the right to the GPU, scaled to zero or one."""

    def __init__(
        self, settings: Settings, servers: dict[str, DeploymentHandle], app_name: str
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._scaler = ReplicaScaler(app_name)
        self._lost: set[str] = set()  # models whose replica died under its hold
        self._standby: StandbyKeeper | None = None
        if settings.standby:
            home = Path(settings.home)
            self._standby = StandbyKeeper(
                home / "run" / "standby.sock",
                home / "logs" / "standby.log",
                base_environment() | OFFLINE,
            )
            self._keeping = asyncio.get_running_loop().create_task(self._standby.run())

    async def check(self, target: str) -> None:
        await self._check(target)

    async def prepare(self, target: str) -> None:
        folder = await self._check(target)
        await asyncio.to_thread(_read_ahead, folder)
        if self._standby:
            await self._standby.wait_ready(_STANDBY_READY_S)

    async def _check(self, target: str) -> Path:
        home = Path(self._settings.home)
        return await asyncio.to_thread(checkpoint.check, self._settings.targets[target], home)

    async def hold(self, target: str, epoch: int) -> AsyncIterator[EngineEvent]:
        model = self._settings.targets[target].name
        deadline_s = self._settings.switching.load_timeout_s
        self._lost.discard(model)
        try:
            async with asyncio.timeout(deadline_s) as limit:
                await self._scaler.scale(model, 1, _SCALE_TIMEOUT_S)
                events = self._servers[model].options(stream=True).hold.remote(epoch, target)
                async for event in events:
                    if isinstance(event, EngineReady):
                        limit.reschedule(None)
                    yield event
        except TimeoutError:
            message = f"{target} was not ready in {deadline_s:.0f} s"
            yield EngineGone(Problem("load_timeout", message))
        except ScalingFailed as exc:
            yield EngineGone(Problem("scaling_failed", str(exc)))
        except (RayError, RayServeException) as exc:
            self._lost.add(model)
            message = f"the replica of {model} is gone ({type(exc).__name__})"
            yield EngineGone(Problem("replica_lost", message))

    async def release(self, target: str) -> None:
        await self._end_replica(self._settings.targets[target].name)

    async def _end_replica(self, model: str) -> None:
        bound_s = self._settings.switching.unload_timeout_s + 5
        # A dead replica can not answer, and its engine's supervisor ends the engine.
        if model not in self._lost and (await self._scaler.replicas())[model].num_running:
            with suppress(RayError, RayServeException, TimeoutError):
                await asyncio.wait_for(self._servers[model].release.remote(), bound_s)
        await self._scaler.scale(model, 0, _SCALE_TIMEOUT_S)
        await self._scaler.wait_gone(model, _SCALE_TIMEOUT_S)

    async def find_running(self) -> tuple[str, int, str] | None:
        """What serves, if anything; replicas that hold no serving engine are ended."""
        replicas = await self._scaler.replicas()
        found = None
        idle = []
        for name in self._servers:
            running = None
            if replicas[name].num_running and not found:
                with suppress(RayError, RayServeException, TimeoutError):
                    running = await asyncio.wait_for(self._servers[name].describe.remote(), 10)
            if running:
                found = running
            elif replicas[name].num_existing:
                idle.append(name)
        await asyncio.gather(*(self._end_replica(name) for name in idle))
        return found

    def dashboard_url(self) -> str:
        return scaling.dashboard_url()


def _read_ahead(folder: Path) -> None:
    """Read the weights once, so that the engine finds them in the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.read(_CHUNK_BYTES):
                pass
