"""Carries out the effects of the residency machine and reports their results to it."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, overload

from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine.events import EngineGone, EngineReady, EngineStarted, EngineVerifying
from deployments.memory.gpu_watch import NO_GPU, GpuWatch, alarm_event
from deployments.memory.nvml import GpuReader
from deployments.residency import (
    Effect,
    Event,
    Lease,
    Load,
    Policy,
    Prepare,
    Problem,
    Residency,
    State,
    Ticket,
    Unload,
    events,
)
from deployments.settings import Settings, paths
from deployments.switchboard.event_log import EventLog
from deployments.switchboard.history import History
from deployments.switchboard.messages import LeaseView, View
from deployments.switchboard.metrics import SwitchMetrics
from deployments.switchboard.replicas import Replicas
from deployments.switchboard.state_file import SavedState, load_state, save_state

_SPARE_S = 30.0

logger = logging.getLogger("llm_backend.switchboard")


class EffectRunner:
    """Runs the machine's effects on the replicas; keeps the view and the history.

    Everything runs on one event loop, and no method blocks it. Every event reaches the machine
    through `handle`; the Switchboard calls `handle` only after `has_started`.
    """

    def __init__(
        self,
        settings: Settings,
        replicas: Replicas,
        open_gpu: Callable[[], GpuReader] | None = None,
    ) -> None:
        switching = settings.switching
        self._settings = settings
        self._replicas = replicas
        self._state_file = settings.home / paths.RESIDENCY
        self._saved = load_state(self._state_file)  # by an earlier boot
        self._last_saved: object = None  # what this boot wrote last
        policy = Policy(
            drain_timeout_s=switching.drain_timeout_s,
            max_wait_s=switching.max_wait_s,
            min_resident_s=switching.min_resident_s,
            probation_s=switching.probation_s,
            failed_retry_s=switching.failed_retry_s,
            # longer than the limit in `ServeReplicas`, whose error says more
            load_timeout_s=switching.load_timeout_s + _SPARE_S,
            idle_unload_s={
                target: switching.idle_unload_s[spec.name]
                for target, spec in settings.targets.items()
                if spec.name in switching.idle_unload_s
            },
        )
        epoch = self._saved.epoch if self._saved else 0
        self.boot = uuid.uuid4().hex[:8]
        self.machine = Residency(list(settings.targets), policy, epoch, self.boot)
        self.event_log = EventLog(settings.home, self.machine)
        self.has_started = asyncio.Event()  # the machine knows which engine runs: events may come
        metrics = SwitchMetrics(list(settings.targets), time.monotonic())
        self.history = History(self.boot, metrics)
        if self._saved:
            self.history.recall(self._saved.tickets)
        self._announced = self.history.position  # watchers were woken for the events up to here
        self.gpu = NO_GPU
        self._context_tokens: tuple[int, int | None] = (epoch, None)  # of the engine of an epoch
        self.view = self._make_view(0)
        self._changed = asyncio.Event()  # set, and replaced, when watchers are woken
        self._wake = asyncio.Event()
        self._preparing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._start())
        self._spawn(self._keep_time())
        if open_gpu:
            watch = GpuWatch(settings.gpu, open_gpu, lambda: self.view.admitting_epoch)
            self._spawn(self._watch_gpu(watch))

    async def close(self) -> None:
        """End the runner's tasks; a running engine goes on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.event_log.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `condition` is true, at most for `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._changed.wait()

    async def _start(self) -> None:
        running = None
        wanted = self._wanted_at_start()
        try:
            running = await self._replicas.find_running(wanted)
        except Exception:  # the GPU's lock keeps a second engine from starting
            logger.exception("could not find out which engine runs; taken as none")
        now = time.monotonic()
        lease = self._saved_lease(now)
        if lease:
            self._take(events.LeaseRestored(now, lease))
        if running:
            model, epoch, endpoint = running
            self._take(events.EngineAdopted(now, model, epoch, endpoint))
            self._spawn(self._follow_engine(Load(epoch, model)))
        elif wanted:
            self._take(events.Started(now, wanted))
        self.has_started.set()
        self._apply_decisions()

    def _wanted_at_start(self) -> str | None:
        """The target that was desired last, else the default; None if an admin unloaded it and the
        server has run since."""
        saved = self._saved
        if saved and saved.desired in self._settings.targets:
            return saved.desired
        if saved and saved.desired is None and saved.session == self._replicas.session():
            return None
        return self._settings.default_model

    def _saved_lease(self, now: float) -> Lease | None:
        """The lease of the last boot. One that was not granted yet has ended with its switch."""
        lease: LeaseView | None = self._saved.lease if self._saved else None
        if lease and lease.until and lease.model in self._settings.targets:
            return Lease(lease.model, lease.owner, lease.seconds, now + lease.until - time.time())
        return None

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            deadline = self.machine.next_deadline(now)
            self._wake.clear()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    await self._wake.wait()
            except TimeoutError:
                self.handle(events.Ticked(time.monotonic()))

    async def _watch_gpu(self, watch: GpuWatch) -> None:
        await self.has_started.wait()
        async for state in watch.states():
            if state.is_alarming != self.gpu.is_alarming:
                self.history.add_event(
                    "gpu_alarm", **alarm_event(state, self._settings.gpu.alarm_at)
                )
            self.gpu = state
            self._apply_decisions()

    @overload
    def handle(self, event: events.SwitchRequested | events.LeaseRequested) -> Ticket: ...
    @overload
    def handle(self, event: Event) -> Ticket | None: ...
    def handle(self, event: Event) -> Ticket | None:
        """Give the machine an event and carry out its decisions. Returns and raises as
        `Residency.handle` does."""
        ticket = self._take(event)
        self._apply_decisions()
        return ticket

    def _take(self, event: Event) -> Ticket | None:
        self.event_log.write(event)
        return self.machine.handle(event)

    def _apply_decisions(self) -> None:
        """Start the machine's effects, save its state, and wake the watchers if anything changed
        for them."""
        for effect in self.machine.take_effects():
            self._spawn(self._carry_out(effect))
        self.history.observe(self.machine, time.monotonic())
        self._save()
        view = self._make_view(self.view.version + 1)
        has_changed = replace(view, version=self.view.version) != self.view
        if has_changed:
            self.view = view
        if has_changed or self._announced != self.history.position:
            self._announced = self.history.position
            self._changed.set()
            self._changed = asyncio.Event()
        self._wake.set()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Prepare(ticket_id, model):
                await self._prepare(ticket_id, model)
            case Unload(epoch, model, mode):
                try:
                    async with asyncio.timeout(self.machine.policy.load_timeout_s):
                        await self._replicas.unload_engine(model, mode)
                except Exception:  # the GPU's lock guards the next load
                    logger.exception("could not unload %s", model)
                self.handle(events.EngineUnloaded(time.monotonic(), epoch))
            case Load():
                await self._follow_engine(effect)

    async def _prepare(self, ticket_id: str, model: str) -> None:
        if model in self._preparing:  # its threads hang; more of them would block all others
            message = f"the files of {model} are still being read for an earlier switch"
            problem: Problem | None = Problem("prepare_timeout", message)
        else:
            self._preparing.add(model)
            try:
                problem = await problem_of(self._replicas.prepare(model), model)
            finally:
                self._preparing.discard(model)
        now = time.monotonic()
        self.handle(
            events.PreparationRefused(now, ticket_id, problem)
            if problem
            else events.Prepared(now, ticket_id)
        )

    async def _follow_engine(self, load: Load) -> None:
        """Run the engine and hand its events to the machine, until it is gone."""
        problem = Problem("engine_ended", f"the engine of {load.model} ended")
        try:
            async for event in self._replicas.run_engine(load.model, load.epoch):
                match event:
                    case EngineStarted():
                        self.history.metrics.started(load.model, event)
                        self._note(start=event.way)
                        self._apply_decisions()  # the view's `asleep` may have changed
                    case EngineVerifying():
                        self.handle(events.EngineVerifying(time.monotonic(), load.epoch))
                    case EngineReady(socket, context_tokens, steps):
                        self._context_tokens = (load.epoch, context_tokens)
                        self._note(context_tokens=context_tokens, steps=steps)
                        self.history.metrics.load_took(load.model, steps)
                        self.handle(events.EngineReady(time.monotonic(), load.epoch, socket))
                    case EngineGone(why):
                        problem = why
        except Exception:
            logger.exception("could not follow the engine of %s any longer", load.model)
        machine = self.machine
        has_served = machine.state in (State.SERVING, State.DRAINING)
        is_loading = machine.state in (State.LOADING, State.VERIFYING)
        if load.epoch == machine.epoch and (has_served or is_loading):
            self.history.metrics.lost(load.model, problem, has_served=has_served)
            if has_served:
                fields = {"model": load.model, "epoch": load.epoch} | asdict(problem)
                self.history.add_event("engine_lost", **fields)
        self.handle(events.EngineLost(time.monotonic(), load.epoch, problem))

    def _note(self, **notes: object) -> None:
        """Add to what clients see of the running ticket."""
        if self.machine.running:
            self.machine.running.notes.update(notes)

    def _save(self) -> None:
        """Write the state file if it would change; leases and tickets change with an event only."""
        to_save = (self.machine.desired, self.machine.last_epoch, self.history.position)
        if to_save == self._last_saved:
            return
        self._last_saved = to_save
        desired, epoch, _ = to_save
        tickets = self.history.to_save()
        state = SavedState(desired, epoch, self._replicas.session(), self.history.lease, tickets)
        try:
            save_state(self._state_file, state)
        except OSError:
            logger.exception("could not save %s", self._state_file)

    def _make_view(self, version: int) -> View:
        machine = self.machine
        running = machine.running
        return View(
            boot=self.boot,
            version=version,
            state=machine.state,
            epoch=machine.epoch,
            holder=machine.holder,
            endpoint=machine.endpoint,
            is_cut=machine.is_cut,
            failures=dict(machine.failures),
            switch=_summary(running) if running else None,
            place_failed=machine.state is State.EMPTY
            and running is None
            and machine.desired is not None,
            switch_s=self.history.switch_s,
            lease=self.history.lease,
            asleep=self._replicas.asleep(),
            context_tokens=self._context_tokens[1]
            if self._context_tokens[0] == machine.epoch
            else None,
            gpu=self.gpu,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            logger.error("a task of the Switchboard failed", exc_info=task.exception())


def _summary(ticket: Ticket) -> dict[str, Any]:
    return {
        "id": ticket.id,
        "from": ticket.source,
        "to": ticket.target,
        "phase": ticket.phase,
        "estimate_s": ticket.estimate_s,
    }


async def problem_of(preparing: Awaitable[None], model: str) -> Problem | None:
    """Why `model` cannot be loaded, or None."""
    try:
        await preparing
    except CheckpointError as exc:
        return exc.problem
    except Exception:
        logger.exception("could not prepare %s", model)
        return Problem("internal_error", f"{model} could not be prepared")
    return None
