"""The ingress deployment: the public routes, and the loops that follow the Switchboard."""

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from deployments.lifeline import end_with_parent
from deployments.residency import Outcome, State
from deployments.view import GatewayNews, View
from serve_app import requests
from serve_app.admission import Admission
from serve_app.errors import (
    BackendError,
    MethodNotAllowed,
    NotFound,
    Unavailable,
    error_response,
)
from serve_app.forwarding import EngineAnswer, EngineSessions, Job
from serve_app.settings import Settings

_RETRY_S = 0.5  # pause after the Switchboard could not be reached
_MAX_SWITCH_WAIT_S = 1800.0

logger = logging.getLogger("llm_backend.gateway")


class SwitchboardClient(Protocol):
    """What a gateway asks of the Switchboard."""

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View: ...
    async def report(self, news: GatewayNews) -> None: ...
    async def begin_switch(
        self, model: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]: ...
    async def ticket(self, ticket_id: str) -> dict[str, Any]: ...
    async def status(self) -> dict[str, Any]: ...


class Gateway:
    """One gateway's state: its settings, what it admits, and its line to the Switchboard."""

    def __init__(self, settings: Settings, switchboard: SwitchboardClient) -> None:
        self.settings = settings
        self.switchboard = switchboard
        self.admission = Admission(settings.limits, gateway=uuid.uuid4().hex)
        self.sessions = EngineSessions()
        self.started_at = int(time.time())
        self._tasks = [_spawn(self._follow()), _spawn(self._report())]

    async def _follow(self) -> None:
        """Keep the view; while the Switchboard is away, the last one holds."""
        seen: tuple[str, int] | None = None
        while True:
            try:
                view = await self.switchboard.watch(self.admission.gateway, seen)
            except Exception as exc:  # noqa: BLE001  whatever it is, this loop must go on
                logger.warning("the Switchboard does not answer: %r", exc)
                await asyncio.sleep(_RETRY_S)
                continue
            if seen != (view.boot, view.version):
                seen = (view.boot, view.version)
                self.admission.apply(view)

    async def _report(self) -> None:
        while True:
            await self.admission.changed.wait()
            self.admission.changed.clear()
            try:
                await self.switchboard.report(self.admission.news())
            except Exception as exc:  # noqa: BLE001  whatever it is, this loop must go on
                logger.warning("the Switchboard takes no report: %r", exc)
                self.admission.changed.set()
                await asyncio.sleep(_RETRY_S)

    def health(self) -> dict[str, Any]:
        """The body of `GET /health`."""
        view = self.admission.view
        return {
            "status": "ok",
            "state": _health_state(view),
            "resident": view.holder if view and view.state in _RESIDENT else None,
            "epoch": view.epoch if view else 0,
            "in_flight": self.admission.num_in_flight,
            "queued": self.admission.num_queued,
        }

    def models(self) -> list[dict[str, Any]]:
        """Every model in OpenAI's shape, with what is really behind it and where it stands."""
        view = self.admission.view
        return [
            {
                "id": spec.name,
                "object": "model",
                "created": self.started_at,
                "owned_by": "llm-backend",
                "description": spec.description,
                "root": spec.checkpoint,
                "revision": spec.revision,
                "untrained": spec.untrained,
                "max_model_len": spec.engine.max_model_len,
                "tasks": spec.tasks,
                "capabilities": {
                    "vision": spec.vision,
                    "tools": spec.engine.tool_call_parser is not None,
                    "embeddings": "embed" in spec.tasks,
                },
                **_model_status(view, spec.name),
            }
            for spec in self.settings.models.values()
        ]


_RESIDENT = (State.SERVING, State.DRAINING)


def _health_state(view: View | None) -> str:
    if view is None or view.switch:
        return "switching"
    if view.state is State.SERVING:
        return "serving"
    return "failed" if view.place_failed else "idle"


def _model_status(view: View | None, model: str) -> dict[str, Any]:
    if view and view.holder == model:
        loading = view.state in (State.LOADING, State.VERIFYING)
        return {
            "status": "resident" if view.state in _RESIDENT else "loading" if loading else "absent"
        }
    if view and model in view.failures:
        return {"status": "failed", "reason": view.failures[model].message}
    return {"status": "absent"}


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(_gateway)]
routes = APIRouter()


@routes.get("/health", tags=["state"])
async def health(gateway: Here) -> dict[str, Any]:
    """Liveness: answers 200 whatever the models do."""
    return gateway.health()


@routes.get("/health/ready", tags=["state"])
async def ready(gateway: Here) -> JSONResponse:
    """200 while a model serves, 503 else."""
    state = gateway.health()
    return JSONResponse(state, 200 if state["resident"] else 503)


@routes.get("/models", tags=["models"])
@routes.get("/v1/models", tags=["models"])
async def models(gateway: Here) -> dict[str, Any]:
    """All models, resident or not."""
    return {"object": "list", "data": gateway.models()}


@routes.post("/v1/chat/completions", tags=["models"], response_class=Response)
async def chat(request: Request, gateway: Here) -> Response:
    """A chat completion; a model that is not resident is switched to first."""
    limits = gateway.settings.limits
    deadline = asyncio.get_running_loop().time() + limits.request_timeout_s
    body, value = await requests.read_json(request, limits.max_body_bytes)
    model = requests.wanted_model(value, list(gateway.settings.models))
    is_stream, num_choices = requests.check_chat(value)
    job = Job(model, request.url.path, body, is_stream, num_choices, deadline)
    return EngineAnswer(gateway.admission, gateway.sessions, job)


@routes.post("/admin/switch", tags=["admin"])
async def switch(request: Request, gateway: Here) -> JSONResponse:
    """Make a model resident: 202 with a ticket, or with `wait` the finished ticket."""
    _, value = await requests.read_json(request, 64_000)
    wish = requests.read_switch(value)
    requests.wanted_model(value, list(gateway.settings.models))
    ticket = await _ask(
        gateway.switchboard.begin_switch(
            wish.model, wish.drain_timeout_s, _MAX_SWITCH_WAIT_S if wish.wait else None
        )
    )
    return JSONResponse(ticket, _ticket_status(ticket))


@routes.get("/admin/switch/{ticket_id}", tags=["admin"])
async def ticket(ticket_id: str, gateway: Here) -> dict[str, Any]:
    """A switch's ticket."""
    return await _ask(gateway.switchboard.ticket(ticket_id))


@routes.get("/admin/status", tags=["admin"])
async def status(gateway: Here) -> dict[str, Any]:
    """What the Switchboard knows, and this gateway's counts."""
    return await _ask(gateway.switchboard.status()) | {
        "in_flight": gateway.admission.num_in_flight,
        "queued": gateway.admission.num_queued,
        "profile": gateway.settings.profile,
    }


def _ticket_status(ticket: dict[str, Any]) -> int:
    return {
        Outcome.DONE: 200,
        Outcome.ROLLED_BACK: 503,
        Outcome.FAILED: 503,
    }.get(ticket["state"], 202)


async def _ask(question: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The Switchboard's answer; its own errors come back as they were raised there."""
    try:
        return await question
    except RayTaskError as exc:
        if isinstance(exc.cause, BackendError):
            raise exc.cause from None
        raise
    except (RayError, RayServeException) as exc:
        raise Unavailable("The Switchboard is restarting.", retry_after_s=2) from exc


def build_http(gateway: Gateway) -> FastAPI:
    """The ASGI application of one gateway."""
    app = FastAPI(
        title="llm-backend",
        version="0.1.0",
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirect is no answer to a POST, and follows the Host header
    )
    app.state.gateway = gateway
    app.include_router(routes)
    app.add_exception_handler(BackendError, _on_backend_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)
    return app


async def _on_backend_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, BackendError)
    status, headers, body = error_response(exc)
    return Response(body, status, dict(headers))


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        error: BackendError = MethodNotAllowed(f"{request.method} is not allowed here.")
    else:
        error = NotFound(f"There is no {request.url.path[:100]}.")
    return await _on_backend_error(request, error)


async def _on_exception(request: Request, exc: Exception) -> Response:
    logger.error("unexpected error", exc_info=exc)
    return await _on_backend_error(request, BackendError("Something went wrong here."))


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


class _HandleClient:
    """The Switchboard through its deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View:
        view: View = await self._handle.watch.remote(gateway, seen)
        return view

    async def report(self, news: GatewayNews) -> None:
        await self._handle.report.remote(news)

    async def begin_switch(
        self, model: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.begin_switch.remote(
            model, drain_timeout_s, wait_s
        )
        return answer

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.ticket.remote(ticket_id)
        return answer

    async def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.status.remote()
        return answer


@serve.ingress()
class GatewayDeployment:
    """The gateway on Ray Serve."""

    def __init__(self, settings: Settings, switchboard: DeploymentHandle) -> None:
        end_with_parent()
        self._gateway = Gateway(settings, _HandleClient(switchboard))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(self._gateway)
