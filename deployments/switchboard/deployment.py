"""The one writer of residency: the methods that gateways and admins call."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from prometheus_client import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.host import logs
from deployments.host.log_rotation import keep_logs_bounded
from deployments.host.parent_death import end_with_parent
from deployments.memory.gpu_watch import gpu_admin_json
from deployments.memory.monitor import DOES_NOT_FIT
from deployments.memory.nvml import GpuReader, open_nvml
from deployments.residency import Cause, GatewayReport, LeaseHeld, State, Ticket, events
from deployments.residency.outlook import waits_for, would_switch
from deployments.settings import Settings
from deployments.switchboard.errors import LeaseHeldError, UnknownTargetError, UnknownTicketError
from deployments.switchboard.messages import EventPage, View, lease_json, ticket_json
from deployments.switchboard.replicas import Replicas, ServeReplicas
from deployments.switchboard.runner import EffectRunner, problem_of

_WATCH_S = 5.0  # the longest that a watch takes to answer; without a change it is a sign of life
_MAX_EVENTS_WAIT_S = 60.0


class Switchboard:
    """Hands reports and requests to the residency machine, and answers with the result."""

    def __init__(
        self,
        settings: Settings,
        replicas: Replicas,
        open_gpu: Callable[[], GpuReader] | None = None,
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._runner = EffectRunner(settings, replicas, open_gpu)

    async def close(self) -> None:
        """End the Switchboard's tasks; a running engine goes on."""
        await self._runner.close()

    # --- for gateways ---

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View:
        """Return the view once it differs from `seen` (boot, version), or after a few seconds."""
        await self._runner.has_started.wait()
        self._runner.handle(events.GatewayWatched(time.monotonic(), gateway))
        await self._runner.until(
            lambda: (self._runner.view.boot, self._runner.view.version) != seen, _WATCH_S
        )
        return self._runner.view

    async def report(self, report: GatewayReport) -> None:
        """Take a gateway's counts of requests in flight and waiting."""
        await self._runner.has_started.wait()
        self._runner.handle(events.GatewayReported(time.monotonic(), report))

    # --- for admins, through the gateway ---

    async def begin_switch(
        self, target: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        """Make `target` resident. Returns the ticket: at once, or with `wait_s` when the switch is
        over or `wait_s` has passed.

        Raises:
            UnknownTargetError: there is no such target.
        """
        self._check_known(target)
        await self._runner.has_started.wait()
        return await self._switch(target, drain_timeout_s, wait_s)

    async def would_switch(self, target: str) -> dict[str, Any]:
        """What `begin_switch` would do now, and what is in its way; changes nothing.

        Raises:
            UnknownTargetError: there is no such target.
        """
        self._check_known(target)
        await self._runner.has_started.wait()
        problem = await problem_of(self._replicas.check(target), target)
        would = would_switch(self._runner.machine, target)
        if problem:
            kind = "memory" if problem.code == DOES_NOT_FIT else "files"
            blocker = {"kind": kind, "code": problem.code, "message": problem.message}
            would["blockers"] = [*would["blockers"], blocker]
        plan = await self._replicas.plan(target)
        return {"dry_run": True} | would | {"memory": plan and asdict(plan)}

    async def unload(self, drain_timeout_s: float | None, wait_s: float | None) -> dict[str, Any]:
        """Make no model resident; answers like `begin_switch`."""
        await self._runner.has_started.wait()
        return await self._switch(None, drain_timeout_s, wait_s)

    async def lease(self, target: str, seconds: float, owner: str) -> dict[str, Any]:
        """Keep `target` resident for `seconds` from when it serves. Returns the lease and ticket.

        Raises:
            UnknownTargetError: there is no such target.
            LeaseHeldError: another owner has a lease.
        """
        self._check_known(target)
        await self._runner.has_started.wait()
        try:
            ticket = self._runner.handle(
                events.LeaseRequested(time.monotonic(), target, seconds, owner)
            )
        except LeaseHeld as exc:
            held = exc.lease
            raise LeaseHeldError(f"{held.model} is leased to {held.owner}.") from exc
        return {
            "lease": lease_json(self._runner.history.lease),
            "ticket": self._ticket_json(ticket),
        }

    async def end_lease(self) -> dict[str, Any]:
        """End the lease, if there is one, and return it."""
        await self._runner.has_started.wait()
        ended = lease_json(self._runner.history.lease)
        self._runner.handle(events.LeaseEnded(time.monotonic()))
        return {"ended": ended}

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        """One ticket. Raises UnknownTicketError."""
        ticket = self._runner.history.ticket(ticket_id)
        if ticket is None:
            past = self._runner.history.past_ticket(ticket_id)
            if past:
                return past
            raise UnknownTicketError(f"There is no switch ticket `{ticket_id[:100]}`.")
        return self._ticket_json(ticket)

    async def tickets(self, limit: int) -> list[dict[str, Any]]:
        """The last tickets, newest first."""
        own = [self._ticket_json(ticket) for ticket in self._runner.history.tickets(limit)]
        return [*own, *self._runner.history.past_tickets(limit - len(own))]

    async def events(self, after: tuple[str, int] | None, timeout_s: float) -> EventPage:
        """Return the events after a position (boot, number) once there are any, or when time is up.

        With `after` None, returns at once an empty page with the present position.
        """
        await self._runner.has_started.wait()
        wait_s = min(timeout_s, _MAX_EVENTS_WAIT_S)
        await self._runner.until(lambda: after != self._runner.history.position, wait_s)
        return self._runner.history.page(after)

    async def metrics(self) -> list[Metric]:
        """The counts of switches, for a gateway's metrics page."""
        return self._runner.history.metrics.families(time.monotonic())

    async def status(self) -> dict[str, Any]:
        """The state of residency, for admins."""
        machine, now = self._runner.machine, time.monotonic()
        return {
            "state": machine.state,
            "resident": machine.holder,
            "epoch": machine.epoch,
            "desired": machine.desired,
            "serving_for_s": round(now - machine.serving_since, 1)
            if machine.state is State.SERVING
            else None,
            "switch": machine.running and self._ticket_json(machine.running),
            "queued_switches": [self._ticket_json(t) for t in machine.queue],
            "lease": lease_json(self._runner.history.lease),
            "waiting": {
                model: {"requests": demand.num_requests, "oldest_s": round(now - demand.since, 1)}
                for model, demand in machine.gateways.waiting().items()
            },
            "load_seconds": {m: round(s, 2) for m, s in machine.costs.by_target.items() if m},
            "gpu": gpu_admin_json(self._runner.gpu),
            "dashboard": self._replicas.dashboard_url(),
            "failures": {m: asdict(f.problem) for m, f in machine.failures.items()},
            "memory": self._replicas.memory_status(),
        }

    def _check_known(self, target: str) -> None:
        if target not in self._settings.targets:
            raise UnknownTargetError(f"The model `{target[:100]}` does not exist.")

    async def _switch(
        self, target: str | None, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        ticket = self._runner.handle(
            events.SwitchRequested(time.monotonic(), target, Cause.ADMIN, drain_timeout_s)
        )
        if wait_s is not None:
            await self._runner.until(lambda: ticket.is_over, wait_s)
        return self._ticket_json(ticket)

    def _ticket_json(self, ticket: Ticket) -> dict[str, Any]:
        machine = self._runner.machine
        reasons = waits_for(machine) if ticket is machine.running else None
        return ticket_json(ticket, time.monotonic(), reasons)


class SwitchboardDeployment(Switchboard):
    """The Switchboard on Ray Serve."""

    def __init__(self, settings: Settings, servers: dict[str, DeploymentHandle]) -> None:
        end_with_parent()
        logs.write_to_file(settings.home, "switchboard")
        self._keeping_logs = asyncio.get_running_loop().create_task(keep_logs_bounded(settings))
        app_name = serve.get_replica_context().app_name
        # Ray leaves the variable as the user set it in a replica that asks for no GPU.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        super().__init__(
            settings,
            ServeReplicas(settings, servers, app_name),
            (lambda: open_nvml(visible)) if settings.place.is_gpu else None,
        )
