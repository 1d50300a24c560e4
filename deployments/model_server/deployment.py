"""One model's deployment. Its replica has the right to the GPU, and starts and ends one engine.

No request goes through the replica: the gateway talks to the engine's socket.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import load_steps, standby
from deployments.engine.events import (
    EngineEvent,
    EngineFailed,
    EngineGone,
    EngineHeld,
    EngineReady,
    EngineStarted,
    EngineVerifying,
    StartWay,
)
from deployments.engine.process import EngineProcess
from deployments.host import logs
from deployments.host.parent_death import end_with_parent
from deployments.memory.engine_memory import EngineMemory
from deployments.memory.gpu_wait import open_card
from deployments.model_server import watchdog
from deployments.model_server.attempts import LoadAttempts
from deployments.model_server.golden import GoldenAnswer
from deployments.model_server.legacy_port import LegacyPort
from deployments.residency import Problem
from deployments.settings import ModelSpec, Settings

logger = logging.getLogger("llm_backend.model_server")


class ModelServer:
    """Runs the engine of one model while its replica lives."""

    def __init__(self, settings: Settings, model: str, gateway: tuple[str, int]) -> None:
        end_with_parent()
        port = settings.models[model].port
        self._legacy_port = LegacyPort(port, gateway) if port else None
        self._settings = settings
        self._model = model
        # The engine writes into the same file; `keep_logs_bounded` keeps it short.
        logs.write_to_file(settings.home, model, rotates=False)
        self._home = settings.home
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        card = open_card(visible) if settings.place.is_gpu else None
        self._memory = EngineMemory(settings, card)
        self._engine: EngineProcess | None = None
        self._golden: GoldenAnswer | None = None  # of that engine
        self._watching: asyncio.Task[None] | None = None  # while the engine serves
        # set, and replaced by a new event, when the engine falls asleep or wakes
        self._sleep_changed = asyncio.Event()
        self._is_asleep = False
        self._num_stops = 0  # calls of `stop_engine`
        self._context_tokens = 0  # of that engine
        self._load_steps: dict[str, float] = {}  # of its last load
        self._problem: Problem | None = None  # why the replica killed it or put it to sleep

    async def run_engine(self, epoch: int, target: str) -> AsyncIterator[EngineEvent]:
        """Start or wake the engine of `epoch` for `target`, which is one of this model's, and yield
        its events until it is gone or asleep.

        Called again with the epoch of the engine that serves, it yields that engine's events.
        """
        if self._engine is None or self._engine.epoch != epoch:
            try:
                async for event in self._bring_up(epoch, target):
                    yield event
            except (EngineFailed, CheckpointError) as exc:
                yield self._log_gone(epoch, exc.problem)
                return
            except OSError as exc:
                logger.exception("could not start %s", target)
                await self.stop_engine()
                reason = exc.strerror or type(exc).__name__
                file = exc.filename or "unknown file"
                problem = Problem(
                    "disk_problem", f"{target} could not be started: {reason} ({file})"
                )
                yield self._log_gone(epoch, problem)
                return
        engine = self._engine
        assert engine is not None
        if self._watching:
            yield EngineReady(str(engine.socket), self._context_tokens, self._load_steps)
        await self._until_gone(engine, self._sleep_changed)
        if self._legacy_port:
            await self._legacy_port.close()
        yield self._log_gone(epoch, self._problem or engine.why_ended())

    def _log_gone(self, epoch: int, problem: Problem) -> EngineGone:
        fields = {"model": self._model, "epoch": epoch, "reason": problem.message}
        logger.info("engine gone", extra=fields)
        return EngineGone(problem)

    async def _bring_up(self, epoch: int, target: str) -> AsyncIterator[EngineEvent]:
        """(1) Wake the engine that sleeps for `target`. (2) If there is none or it cannot be woken,
        end the old engine and start a new one."""
        self._problem = None
        if await self._wake(epoch, target):  # (1)
            assert self._engine is not None
            self._load_steps = {}
            yield EngineStarted(self._engine.pid, "wake")
        else:  # (2)
            await self.stop_engine()
            spec = self._settings.targets[target]
            assert spec.name == self._model, target
            async for event in self._load(spec, epoch):
                yield event
        yield EngineVerifying()
        await self._verify()

    async def _load(self, spec: ModelSpec, epoch: int) -> AsyncIterator[EngineEvent]:
        folder = checkpoint.locate(spec, self._home)
        device, switching = self._settings.device, self._settings.switching
        claim = await self._memory.claim(spec, folder)
        plan = claim.plan
        self._golden = GoldenAnswer(spec, folder, device, self._home)
        attempts = LoadAttempts(
            is_gpu=device == "cuda",
            is_first_load=plan is not None and plan.overhead_source == "estimate",
            by_standby=standby.may_fork(self._settings),
        )
        self._context_tokens = plan.context_tokens if plan else spec.engine.max_model_len
        if plan and plan.is_shortened:
            logger.warning("%s: %s", spec.target, plan.advice[0])
        num_stops = self._num_stops
        while True:
            began = asyncio.get_running_loop().time()
            engine = EngineProcess(spec, epoch, self._home, can_sleep=self._settings.is_warm)
            self._engine = engine
            await engine.start(
                folder,
                device,
                grace_s=switching.unload_timeout_s,
                memory=claim.share,
                by_standby=attempts.by_standby,
            )
            way: StartWay = "standby" if engine.is_forked else "exec"
            yield EngineStarted(engine.pid, way, claim.before.free_bytes)
            try:
                await engine.wait_ready(switching.load_timeout_s)
                break
            except EngineFailed as exc:
                may_try = attempts.may_try_again(exc.problem, was_forked=engine.is_forked)
                if self._num_stops != num_stops or not may_try:
                    raise
                logger.warning("%s is started once more: %s", spec.target, exc.problem.message)
                await engine.stop()
        load_s = asyncio.get_running_loop().time() - began
        self._load_steps = load_steps.read_steps(await asyncio.to_thread(engine.log_text), load_s)
        if attempts.blamed_on_fork:
            standby.forking_failed(self._home, attempts.blamed_on_fork)
        await self._memory.learn(spec, engine.pid)
        if self._settings.is_warm:  # the first sleep makes the buffers that later sleeps use
            await engine.sleep(switching.load_timeout_s)
            await self._memory.fell_asleep(spec, engine.pid)
            await engine.wake(switching.load_timeout_s)

    async def _wake(self, epoch: int, target: str) -> bool:
        """Wake the engine that sleeps here for `target`; False if there is none or it fails."""
        engine = self._engine
        if engine is None or not self._is_asleep or engine.spec.target != target:
            return False
        if engine.ended.is_set():
            return False
        engine.epoch = epoch
        try:
            await self._memory.prove_room_to_wake()
            await engine.wake(self._settings.switching.unload_timeout_s)
        except EngineFailed as exc:
            logger.warning(
                "could not wake %s, starting a new engine: %s", target, exc.problem.message
            )
            return False
        self._set_asleep(False)
        return True

    async def _verify(self) -> None:
        engine, golden = self._engine, self._golden
        assert engine is not None
        assert golden is not None
        await watchdog.first_answer(engine.socket, engine.pid, golden, self._settings.probing)
        logger.info("engine verified", extra={"model": self._model, "epoch": engine.epoch})
        self._watching = asyncio.get_running_loop().create_task(self._watch(engine, golden))
        if self._legacy_port:
            await self._legacy_port.open()

    async def _watch(self, engine: EngineProcess, golden: GoldenAnswer) -> None:
        """Kill the engine when it no longer works; `run_engine` then reports the reason."""
        problem = await watchdog.watch(engine.socket, engine.pid, golden, self._settings.probing)
        if not engine.ended.is_set():
            self._problem = problem
            engine.kill()

    async def sleep(self) -> bool:
        """Put the engine to sleep. If that fails, ends the engine and returns False."""
        engine = self._engine
        await self._stop_serving()
        if engine is None or engine.ended.is_set():
            return False
        try:
            await engine.sleep(self._settings.switching.unload_timeout_s)
            await self._memory.fell_asleep(engine.spec, engine.pid)
        except EngineFailed as exc:
            logger.warning(
                "could not put %s to sleep, ending its engine: %s",
                engine.spec.target,
                exc.problem.message,
            )
            await self.stop_engine()
            return False
        self._problem = Problem("asleep", f"{engine.spec.target} sleeps")
        self._set_asleep(True)
        return True

    async def stay_asleep(self) -> None:
        """Return when the engine that sleeps here is woken or gone."""
        if self._engine and self._is_asleep:
            await self._until_gone(self._engine, self._sleep_changed)

    def _set_asleep(self, is_asleep: bool) -> None:
        self._is_asleep = is_asleep
        self._sleep_changed.set()
        self._sleep_changed = asyncio.Event()

    async def _until_gone(self, engine: EngineProcess, sleep_changed: asyncio.Event) -> None:
        """Wait until the engine ends, falls asleep or wakes."""
        waits = [asyncio.ensure_future(event.wait()) for event in (engine.ended, sleep_changed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def describe(self) -> EngineHeld | None:
        """The engine that serves or sleeps here; None if there is none."""
        engine = self._engine
        if engine is None or engine.ended.is_set() or not (self._watching or self._is_asleep):
            return None
        return EngineHeld(engine.spec.target, engine.epoch, str(engine.socket), self._is_asleep)

    async def stop_engine(self) -> None:
        """End the engine. Returns when nothing of it is left."""
        self._num_stops += 1
        await self._stop_serving()
        if self._engine and self._engine.pid:
            await self._engine.stop()
        self._is_asleep = False

    async def _stop_serving(self) -> None:
        if self._watching:
            self._watching.cancel()
            self._watching = None
        if self._legacy_port:
            await self._legacy_port.close()

    async def check_health(self) -> None:
        """Serve's health check. Raises RuntimeError if the engine ended while it served."""
        if self._engine and self._watching and self._engine.ended.is_set():
            raise RuntimeError((self._problem or self._engine.why_ended()).message)
