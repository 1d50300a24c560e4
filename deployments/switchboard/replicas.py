"""Checks models, and runs and unloads their engines on the model servers' replicas.

Tests replace the protocol `Replicas` with a fake; `ServeReplicas` is the one on Ray Serve.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import standby
from deployments.engine.environment import standby_environment
from deployments.engine.events import EngineEvent, EngineGone, EngineHeld, EngineReady
from deployments.engine.forkserver import ForkServerKeeper
from deployments.host.filesystems import is_slow_filesystem
from deployments.memory.monitor import open_host_memory
from deployments.memory.plan import Plan
from deployments.residency import Problem, UnloadMode
from deployments.settings import Settings
from deployments.switchboard import prestart, scaler
from deployments.switchboard.scaler import ReplicaScaler, ScalingFailed

# Serve needs seconds, and up to twenty times as long if other programs use the cores.
_SCALE_TIMEOUT_S = 120.0
# The fork server's imports take 8 s on two idle cores; a plain start of an engine takes three times
# that.
_STANDBY_READY_S = 45.0
_CLEARED_S = 60.0  # to kill an engine that has not ended in its own time, and to clear its remains
_DESCRIBE_S = 60.0
# While a model loads: seconds between two looks for replicas that the Switchboard did not ask for.
_STRAYS_S = 2.0
_SPARE_AFTER_S = 2.0  # the spare worker's imports would slow the new model's first answers
_CHUNK_BYTES = 8 * 1024 * 1024

logger = logging.getLogger("llm_backend.switchboard")


class Replicas(Protocol):
    """What the Switchboard needs of the cluster; tests replace it with a fake."""

    async def check(self, target: str) -> None:
        """Check the model's files, and that the model fits. Raises CheckpointError."""

    async def prepare(self, target: str) -> None:
        """Do `check`, and read the files into the page cache. Raises CheckpointError."""

    async def plan(self, target: str) -> Plan | None:
        """The model's memory plan, with the memory free now; None if it cannot be made."""

    def memory_status(self) -> dict[str, Any]:
        """How much memory the last unloads gave back."""

    def run_engine(self, target: str, epoch: int) -> AsyncIterator[EngineEvent]:
        """Start an engine and yield its events; the last one is EngineGone."""

    async def unload_engine(self, target: str, mode: UnloadMode) -> None:
        """Put the engine to sleep, or stop it and its replica, as `mode` says.

        Returns when the engine is asleep or gone, or after a bounded time.
        """

    def asleep(self) -> tuple[str, ...]:
        """The targets whose engines sleep, the longest asleep first."""

    async def find_running(self, wanted: str | None) -> tuple[str, int, str] | None:
        """Return (target, epoch, socket) of the engine that serves, or None. Ends replicas without
        an engine, except one in which `wanted` can start."""

    def dashboard_url(self) -> str:
        """The address of Ray's dashboard."""

    def session(self) -> str:
        """The id of this Ray session; it changes when the whole server is started again."""


class ServeReplicas:
    """Scales each model server on Ray Serve to zero or one replica. Only a replica may use the
    GPU."""

    def __init__(
        self, settings: Settings, servers: dict[str, DeploymentHandle], app_name: str
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._scaler = ReplicaScaler(app_name)
        self._memory = open_host_memory(settings)
        self._lost: set[str] = set()  # models whose replica died while its engine ran
        # sleeping target -> the task that watches its engine; the longest asleep first
        self._asleep: dict[str, asyncio.Task[None]] = {}
        self._spare: asyncio.Task[None] | None = None  # starts a spare worker for the next replica
        self._standby: ForkServerKeeper | None = None
        if standby.may_fork(settings):
            self._standby = ForkServerKeeper(settings.home, standby_environment(settings.device))
            self._keeping = asyncio.get_running_loop().create_task(self._standby.run())

    async def check(self, target: str) -> None:
        await self._check(target)

    async def prepare(self, target: str) -> None:
        if target in self._asleep:  # its engine has read the files and holds the memory
            return
        folder = await self._check(target)
        await asyncio.to_thread(_read_ahead, folder)
        if self._standby:
            await self._standby.wait_ready(_STANDBY_READY_S)

    async def _check(self, target: str) -> Path:
        spec, home = self._settings.targets[target], self._settings.home
        folder = await asyncio.to_thread(checkpoint.check, spec, home)
        await asyncio.to_thread(self._memory.check, spec, folder)
        return folder

    async def plan(self, target: str) -> Plan | None:
        spec, home = self._settings.targets[target], self._settings.home
        with suppress(CheckpointError):
            folder = await asyncio.to_thread(checkpoint.locate, spec, home)
            return await asyncio.to_thread(self._memory.plan, spec, folder)
        return None

    def memory_status(self) -> dict[str, Any]:
        return self._memory.cycles.status()

    async def run_engine(self, target: str, epoch: int) -> AsyncIterator[EngineEvent]:
        model = self._settings.targets[target].name
        deadline_s = self._settings.switching.load_timeout_s
        self._lost.discard(model)
        try:
            async with asyncio.timeout(deadline_s) as limit, AsyncExitStack() as loading:
                await self._make_room_for(target)
                await self._scaler.scale(model, 1, _SCALE_TIMEOUT_S)
                await loading.enter_async_context(self._clearing_strays(model))
                events = self._servers[model].options(stream=True).run_engine.remote(epoch, target)
                async for event in events:
                    if isinstance(event, EngineReady):
                        limit.reschedule(None)
                        await loading.aclose()
                        if not self._settings.is_warm:  # in warm mode each model keeps its replica
                            self._spare = asyncio.get_running_loop().create_task(_start_spare())
                    yield event
        except TimeoutError:
            message = f"{target} was not ready within {deadline_s:.0f} s"
            yield EngineGone(Problem("load_timeout", message))
        except ScalingFailed as exc:
            yield EngineGone(Problem("scaling_failed", str(exc)))
        except (RayError, RayServeException) as exc:
            self._lost.add(model)
            message = f"the replica of {model} died ({type(exc).__name__})"
            yield EngineGone(Problem("replica_lost", message))

    async def unload_engine(self, target: str, mode: UnloadMode) -> None:
        model = self._settings.targets[target].name
        if mode is UnloadMode.STOP_ALL:
            await self._end_sleepers(list(self._asleep))
        may_sleep = self._settings.is_warm and mode is UnloadMode.SLEEP
        if may_sleep and await self._put_to_sleep(model):
            self._note_asleep(target)
        else:
            async with self._memory.unloading(model):
                await self._end_replica(model)

    def asleep(self) -> tuple[str, ...]:
        return tuple(self._asleep)

    async def _put_to_sleep(self, model: str) -> bool:
        with suppress(RayError, RayServeException, TimeoutError):
            bound_s = 2 * self._settings.switching.unload_timeout_s + _CLEARED_S
            is_asleep: bool = await asyncio.wait_for(self._servers[model].sleep.remote(), bound_s)
            return is_asleep
        return False

    def _note_asleep(self, target: str) -> None:
        watch = self._watch_sleeper(target)
        self._asleep[target] = asyncio.get_running_loop().create_task(watch)

    async def _watch_sleeper(self, target: str) -> None:
        """Remove the target when its sleeping engine dies or wakes."""
        with suppress(RayError, RayServeException):
            await self._servers[self._settings.targets[target].name].stay_asleep.remote()
        self._asleep.pop(target, None)

    async def _make_room_for(self, target: str) -> None:
        """End the sleeping engines that cannot stay beside `target`: those of its own model with
        another task, and the longest asleep above the number allowed."""
        model = self._settings.targets[target].name
        self._forget_asleep(target)  # it is about to be woken
        others = list(self._asleep)
        same = [other for other in others if self._settings.targets[other].name == model]
        for other in same:  # the replica itself ends this engine before it starts another
            self._forget_asleep(other)
            others.remove(other)
        await self._end_sleepers(others[: max(0, len(others) - self._settings.max_sleepers)])

    @asynccontextmanager
    async def _clearing_strays(self, model: str) -> AsyncIterator[None]:
        """While `model` loads, end the replicas that would keep it from the GPU for ever.

        (1) Deploying the configuration again with other options sets a deployment back to the one
        replica that the code declares, and Ray may place that replica first. (2) The old model's
        replica stays if the Serve controller could not be reached to end it.
        """
        is_over = asyncio.Event()
        clearing = asyncio.get_running_loop().create_task(self._clear_strays(model, is_over))
        try:
            yield
        finally:
            is_over.set()
            await clearing  # no scaling of ours must overlap with the next one

    async def _clear_strays(self, model: str, is_over: asyncio.Event) -> None:
        while True:
            with suppress(TimeoutError):  # Serve does not report when its replica counts change
                await asyncio.wait_for(is_over.wait(), _STRAYS_S)
                return
            try:
                await self._end_strays(model)
            except Exception as exc:  # noqa: BLE001  this loop must go on after any error
                logger.warning("could not end replicas of other models: %r", exc)

    async def _end_strays(self, model: str) -> None:
        replicas = await self._scaler.replicas()
        sleepers = {self._settings.targets[target].name for target in self._asleep}
        for name in self._servers.keys() - sleepers - {model}:
            if replicas[name].num_existing:
                await self._scaler.scale(name, 0, _SCALE_TIMEOUT_S)

    async def _end_sleepers(self, targets: list[str]) -> None:
        for target in targets:
            self._forget_asleep(target)
            await self._end_replica(self._settings.targets[target].name)

    def _forget_asleep(self, target: str) -> None:
        watching = self._asleep.pop(target, None)
        if watching:
            watching.cancel()

    async def _end_replica(self, model: str) -> None:
        """Return when nothing of the replica's engine is left; the replica may still be ending."""
        bound_s = self._settings.switching.unload_timeout_s + _CLEARED_S
        replicas = await self._scaler.replicas()
        has_ended = False
        # A dead replica cannot answer, and its engine's supervisor ends the engine.
        if model not in self._lost and replicas[model].num_running:
            with suppress(RayError, RayServeException, TimeoutError):
                await asyncio.wait_for(self._servers[model].stop_engine.remote(), bound_s)
                has_ended = True
        await self._scaler.scale(model, 0, _SCALE_TIMEOUT_S)
        if not has_ended:
            await self._scaler.wait_gone(model, _SCALE_TIMEOUT_S)

    async def find_running(self, wanted: str | None) -> tuple[str, int, str] | None:
        """As `Replicas.find_running`; sleeping engines stay."""
        replicas = await self._scaler.replicas()
        found = None
        others: dict[str, bool] = {}  # name -> whether an engine can start in its replica
        for name in self._servers:
            held: EngineHeld | None = None
            is_usable = True
            if replicas[name].num_running:
                try:
                    held = await asyncio.wait_for(
                        self._servers[name].describe.remote(), _DESCRIBE_S
                    )
                except (RayError, RayServeException, TimeoutError):
                    is_usable = False
            if held and held.is_asleep:
                self._note_asleep(held.target)
            elif held and not found:
                found = (held.target, held.epoch, held.socket)
            elif replicas[name].num_existing:
                others[name] = is_usable and not held
        kept = self._settings.targets[wanted].name if wanted and not found else None
        to_end = [name for name, is_usable in others.items() if name != kept or not is_usable]
        await asyncio.gather(*(self._end_replica(name) for name in to_end))
        return found

    def dashboard_url(self) -> str:
        return scaler.dashboard_url()

    def session(self) -> str:
        return scaler.session_name()


async def _start_spare() -> None:
    await asyncio.sleep(_SPARE_AFTER_S)
    await asyncio.to_thread(prestart.start_one)


def _read_ahead(folder: Path) -> None:
    """Read the weights once, so that the engine finds them in the page cache, where a disk of
    Windows leaves little."""
    if is_slow_filesystem(folder):
        return
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.read(_CHUNK_BYTES):
                pass
