"""The one writer of residency: feeds the machine of `residency.py`, carries out its decisions."""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.checkpoint import CheckpointProblem
from deployments.engine import EngineGone, EngineReady, EngineVerifying
from deployments.lifeline import end_with_parent
from deployments.residency import (
    Cause,
    Effect,
    Load,
    Policy,
    Prepare,
    Problem,
    Residency,
    State,
    Ticket,
    Unload,
)
from deployments.serve_host import Host, ServeHost
from deployments.state_file import SavedState, load_state, save_state
from deployments.view import FailedLoad, GatewayNews, View, ticket_json
from serve_app.errors import NotFound, UnknownModel
from serve_app.settings import Settings

_WATCH_S = 5.0  # a watch answers at the latest after this, changed or not: a sign of life
_NUM_KEPT_TICKETS = 200

logger = logging.getLogger("llm_backend.switchboard")


class Switchboard:
    """The shell around the machine. Everything runs on one event loop; no method blocks it."""

    def __init__(self, settings: Settings, host: Host) -> None:
        switching = settings.switching
        self._settings = settings
        self._host = host
        self._state_file = Path(settings.home) / "run" / "residency.json"
        self._saved = load_state(self._state_file)
        policy = Policy(
            drain_timeout_s=switching.drain_timeout_s,
            max_wait_s=switching.max_wait_s,
            min_resident_s=switching.min_resident_s,
            probation_s=switching.probation_s,
            failed_retry_s=switching.failed_retry_s,
        )
        epoch = self._saved.epoch if self._saved else 0
        self._boot = uuid.uuid4().hex[:8]
        self._machine = Residency(list(settings.models), policy, epoch, self._boot)
        self._has_started = asyncio.Event()  # what runs is known: events may come
        self._tickets: deque[Ticket] = deque(maxlen=_NUM_KEPT_TICKETS)
        self._view = self._make_view(0)
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._start())
        self._spawn(self._keep_time())

    # --- for gateways ---

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View:
        """The view, as soon as it differs from `seen` (boot, version), or after a few seconds."""
        await self._has_started.wait()
        self._machine.watch(time.monotonic(), gateway)
        self._settle()
        try:
            async with asyncio.timeout(_WATCH_S), self._changed:
                await self._changed.wait_for(lambda: (self._view.boot, self._view.version) != seen)
        except TimeoutError:
            pass
        return self._view

    async def report(self, news: GatewayNews) -> None:
        """A gateway's in-flight and waiting counts."""
        await self._has_started.wait()
        now = time.monotonic()
        self._machine.report(now, news.gateway, news.to_report(now))
        self._settle()

    # --- for admins, through the gateway ---

    async def begin_switch(
        self, model: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        """Make `model` resident; returns the ticket at once, or when it is over or `wait_s` passed.

        Raises:
            UnknownModel: there is no such model.
        """
        if model not in self._settings.models:
            raise UnknownModel(f"The model `{model}` does not exist.", "model")
        await self._has_started.wait()
        now = time.monotonic()
        ticket = self._machine.request_switch(now, model, Cause.ADMIN, drain_timeout_s)
        self._keep(ticket)
        self._settle()
        if wait_s is not None:
            try:
                async with asyncio.timeout(wait_s), self._changed:
                    await self._changed.wait_for(lambda: ticket.is_over)
            except TimeoutError:
                pass
        return ticket_json(ticket, time.monotonic())

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        """One ticket. Raises NotFound."""
        for ticket in self._tickets:
            if ticket.id == ticket_id:
                return ticket_json(ticket, time.monotonic())
        raise NotFound(f"There is no switch ticket `{ticket_id}`.", "ticket")

    async def status(self) -> dict[str, Any]:
        """Everything an admin wants to know of residency."""
        machine, now = self._machine, time.monotonic()
        return {
            "state": machine.state,
            "resident": machine.holder,
            "epoch": machine.epoch,
            "desired": machine.desired,
            "serving_for_s": round(now - machine.serving_since, 1)
            if machine.state is State.SERVING
            else None,
            "switch": machine.running and ticket_json(machine.running, now),
            "queued_switches": [ticket_json(t, now) for t in machine.queue],
            "waiting": {
                model: {"requests": w.num_requests, "oldest_s": round(now - w.oldest_arrival, 1)}
                for model, w in machine.waiting().items()
            },
            "load_seconds": {m: round(s, 2) for m, s in machine.switch_seconds.items()},
            "dashboard": self._host.dashboard_url(),
            "failures": {m: asdict(f.problem) for m, f in machine.failures.items()},
        }

    # --- carrying out ---

    async def _start(self) -> None:
        running = None
        try:
            running = await self._host.find_running()
        except Exception:  # the lock on the place keeps a second engine away
            logger.exception("could not see what runs")
        now = time.monotonic()
        wanted = self._settings.default_model
        if self._saved and self._saved.desired in self._settings.models:
            wanted = self._saved.desired
        if running:
            model, epoch, endpoint = running
            self._machine.adopt(now, model, epoch, endpoint)
            self._spawn(self._follow_engine(Load(epoch, model)))
        elif wanted:
            self._machine.start(now, wanted)
        self._has_started.set()
        self._settle()

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            deadline = self._machine.next_deadline(now)
            self._wake.clear()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    await self._wake.wait()
            except TimeoutError:
                self._machine.tick(time.monotonic())
                self._settle()

    def _settle(self) -> None:
        """After each event: carry out what was decided, save it, and tell those who watch."""
        for effect in self._machine.take_effects():
            self._spawn(self._carry_out(effect))
        for ticket in [*self._machine.queue, self._machine.running]:
            self._keep(ticket)
        self._save()
        view = self._make_view(self._view.version + 1)
        if replace(view, version=self._view.version) != self._view:
            self._view = view
            self._spawn(self._notify())
        self._wake.set()

    def _keep(self, ticket: Ticket | None) -> None:
        if ticket and ticket not in self._tickets:
            self._tickets.appendleft(ticket)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Prepare(ticket_id, model):
                await self._prepare(ticket_id, model)
            case Unload(epoch, model):
                try:
                    await self._host.release(model)
                except Exception:  # the lock on the place guards the next load
                    logger.exception("could not release %s", model)
                self._machine.unloaded(time.monotonic(), epoch)
            case Load():
                await self._follow_engine(effect)
        self._settle()

    async def _prepare(self, ticket_id: str, model: str) -> None:
        try:
            await self._host.prepare(model)
        except CheckpointProblem as exc:
            self._machine.refused(time.monotonic(), ticket_id, exc.problem)
        except Exception:
            logger.exception("could not prepare %s", model)
            problem = Problem("internal_error", f"{model} could not be prepared")
            self._machine.refused(time.monotonic(), ticket_id, problem)
        else:
            self._machine.prepared(time.monotonic(), ticket_id)

    async def _follow_engine(self, load: Load) -> None:
        """Hold the engine and pass on what becomes of it, until it is gone."""
        problem = Problem("engine_ended", f"the engine of {load.model} ended")
        try:
            async for event in self._host.hold(load.model, load.epoch):
                match event:
                    case EngineVerifying():
                        self._machine.verifying(time.monotonic(), load.epoch)
                    case EngineReady(socket):
                        self._machine.ready(time.monotonic(), load.epoch, socket)
                    case EngineGone(why):
                        problem = why
                self._settle()
        except Exception:
            logger.exception("lost hold of %s", load.model)
        self._machine.engine_lost(time.monotonic(), load.epoch, problem)
        self._settle()

    def _save(self) -> None:
        state = SavedState(self._machine.desired, self._machine.epoch)
        if state != self._saved:
            try:
                save_state(self._state_file, state)
            except OSError:
                logger.exception("could not save %s", self._state_file)
            self._saved = state

    def _make_view(self, version: int) -> View:
        machine = self._machine
        running = machine.running
        return View(
            boot=self._boot,
            version=version,
            state=machine.state,
            epoch=machine.epoch,
            holder=machine.holder,
            endpoint=machine.endpoint,
            is_cut=machine.is_cut,
            failures={
                model: FailedLoad(
                    f.seq, f.problem.code, f.problem.message, machine.policy.failed_retry_s
                )
                for model, f in machine.failures.items()
            },
            switch=_summary(running) if running else None,
            place_failed=machine.state is State.EMPTY
            and running is None
            and machine.desired is not None,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _summary(ticket: Ticket) -> dict[str, Any]:
    return {
        "id": ticket.id,
        "from": ticket.source,
        "to": ticket.target,
        "phase": ticket.phase,
    }


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        logger.exception("a task of the Switchboard failed")


class SwitchboardDeployment(Switchboard):
    """The Switchboard on Ray Serve."""

    def __init__(self, settings: Settings, servers: dict[str, DeploymentHandle]) -> None:
        end_with_parent()
        app_name = serve.get_replica_context().app_name
        super().__init__(settings, ServeHost(settings, servers, app_name))
