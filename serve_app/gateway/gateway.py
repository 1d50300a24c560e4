"""One gateway's state, and the loops that follow the Switchboard and report to it."""

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Request

from deployments.checkpoints.checkpoint import size_bytes
from deployments.memory.gpu_watch import NO_GPU, gpu_json
from deployments.residency import State
from deployments.settings import ModelSpec, Settings
from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.messages import View
from serve_app.cache.responses import ResponseCache
from serve_app.gateway.admission import Admission
from serve_app.gateway.relay import EngineSessions
from serve_app.telemetry.metrics import GatewayMetrics

_RETRY_S = 0.5  # pause after a failed call to the Switchboard
# Longest time between two reports. The Switchboard takes a model for idle only if every gateway
# says so; silence does not count.
_REPORT_S = 3.0
_WATCH_LIMIT_S = 30.0  # a watch that is silent for longer has lost its Switchboard

logger = logging.getLogger("llm_backend.gateway")


class Gateway:
    """One gateway's state: settings, admission, cache, metrics and the Switchboard's handle."""

    def __init__(self, settings: Settings, switchboard: Switchboard) -> None:
        self.settings = settings
        self.names = settings.names
        self.switchboard = switchboard
        self.admission = Admission(settings.limits, gateway=uuid.uuid4().hex)
        self.sessions = EngineSessions()
        self.cache = ResponseCache(settings)
        self.metrics = GatewayMetrics(settings)
        self.started_at = int(time.time())
        self._weight_bytes: dict[str, int | None] = {}
        asyncio.get_running_loop().run_in_executor(None, self._measure_weights)
        self._tasks = [_spawn(self._follow()), _spawn(self._report())]

    async def close(self) -> None:
        """End the loops and the connections to engines."""
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)
        await self.sessions.close()
        await self.cache.close()

    async def _follow(self) -> None:
        """Follow the Switchboard's view; while it cannot be reached, the last view holds."""
        seen: tuple[str, int] | None = None
        while True:
            try:
                async with asyncio.timeout(_WATCH_LIMIT_S):
                    view = await self.switchboard.watch(self.admission.gateway, seen)
            except Exception as exc:  # noqa: BLE001  this loop must survive every error
                logger.warning("cannot get the Switchboard's view; the last one holds: %r", exc)
                await asyncio.sleep(_RETRY_S)
                continue
            if seen != (view.boot, view.version):
                seen = (view.boot, view.version)
                self.admission.apply(view)

    async def _report(self) -> None:
        """Report each change that the Switchboard acts on, and at least every `_REPORT_S`."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_S):
                    await self.admission.changed.wait()
            self.admission.changed.clear()
            try:
                await self.switchboard.report(self.admission.report())
            except Exception as exc:  # noqa: BLE001  this loop must survive every error
                logger.warning("cannot report to the Switchboard; trying again: %r", exc)
                self.admission.changed.set()
                await asyncio.sleep(_RETRY_S)

    def _measure_weights(self) -> None:
        """Runs in a thread: it reads files, and may import the hub's library to find them."""
        home = self.settings.home
        self._weight_bytes = {n: size_bytes(spec, home) for n, spec in self.settings.models.items()}

    def health(self) -> dict[str, Any]:
        """Return the body of `GET /health`."""
        view, resident = self.admission.view, self._resident()
        return {
            "status": "ok",
            "state": _health_state(view),
            "resident": resident and resident.name,
            "task": resident and resident.task,
            "epoch": view.epoch if view else 0,
            "in_flight": self.admission.num_in_flight,
            "queued": self.admission.num_queued,
            "gpu": gpu_json(view.gpu if view else NO_GPU),
        }

    def model_for_anthropic(self, spec: ModelSpec) -> dict[str, Any]:
        """Describe a model in Anthropic's shape."""
        created_at = datetime.fromtimestamp(self.started_at, UTC)
        return {
            "type": "model",
            "id": spec.name,
            "display_name": spec.name,
            "created_at": created_at.isoformat().replace("+00:00", "Z"),
            "lifecycle": "active",
            "max_input_tokens": self._context_tokens(spec),
            "max_tokens": self._context_tokens(spec),
        }

    def _context_tokens(self, spec: ModelSpec) -> int:
        """What a request may hold: of a resident model what its engine was started with, which may
        be less than the settings want."""
        view, resident = self.admission.view, self._resident()
        if view and view.context_tokens and resident and resident.name == spec.name:
            return view.context_tokens
        return spec.engine.max_model_len

    def _resident(self) -> ModelSpec | None:
        view = self.admission.view
        if view and view.holder and view.state in _RESIDENT:
            return self.settings.targets[view.holder]
        return None

    def model(self, spec: ModelSpec) -> dict[str, Any]:
        """Describe a model in OpenAI's shape, with its checkpoint, capabilities and status."""
        return {
            "id": spec.name,
            "object": "model",
            "created": self.started_at,
            "owned_by": "llm-backend",
            "description": spec.description,
            "root": spec.checkpoint,
            "revision": spec.revision,
            "untrained": spec.untrained,
            "size_bytes": self._weight_bytes.get(spec.name),
            "max_model_len": self._context_tokens(spec),
            "tasks": spec.tasks,
            "capabilities": {
                "vision": spec.vision,
                "tools": spec.engine.tool_call_parser is not None,
                "embeddings": "embed" in spec.tasks,
            },
            **_model_status(self.admission.view, spec),
        }


_RESIDENT = (State.SERVING, State.DRAINING)


def _health_state(view: View | None) -> str:
    if view is None or view.switch:
        return "switching"
    if view.state is State.SERVING:
        return "serving"
    return "failed" if view.place_failed else "idle"


def _model_status(view: View | None, spec: ModelSpec) -> dict[str, Any]:
    """Return a model's status, and the task with which it is resident or loading."""
    tasks = {spec.target_for(task): task for task in spec.tasks}
    if view and view.holder in tasks:
        loading = view.state in (State.LOADING, State.VERIFYING)
        status = "resident" if view.state in _RESIDENT else "loading" if loading else "absent"
        return {"status": status, "task": tasks[view.holder] if status != "absent" else None}
    failures = [view.failures[target] for target in tasks if view and target in view.failures]
    if failures:
        return {"status": "failed", "task": None, "reason": failures[-1].problem.message}
    if view and any(target in view.asleep for target in tasks):
        return {"status": "asleep", "task": None}
    return {"status": "absent", "task": None}


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


# A coroutine, because FastAPI calls a plain function in another thread.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]  # the type of a route's parameter `gateway`
