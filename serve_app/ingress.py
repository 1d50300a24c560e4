"""The ingress deployment: the ASGI application around one gateway."""

import asyncio
import gc
import logging

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.host.logs import write_to_file
from deployments.host.parent_death import end_with_parent
from deployments.settings import Settings
from serve_app.gateway.gateway import Gateway
from serve_app.gateway.switchboard_client import behind
from serve_app.protocol.asgi import chunk
from serve_app.protocol.calls import dialect_of
from serve_app.protocol.errors import (
    BackendError,
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    error_response,
)
from serve_app.routes import admin, console, inference, logs, metrics
from serve_app.routes.auth import Guard
from serve_app.routes.openapi import document
from serve_app.telemetry.context import RequestFields, request_context
from serve_app.telemetry.middleware import TelemetryMiddleware
from serve_app.validation.reading import invalid_field

_MAX_HEADER_BYTES = 32_768
# By which clients steer Serve's proxy. HAProxy drops the second: Serve would obey before we do.
_STEERING = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")

logger = logging.getLogger("llm_backend.gateway")

routes = APIRouter()
routes.include_router(inference.open_routes)
routes.include_router(inference.routes)
routes.include_router(admin.routes)
routes.include_router(metrics.routes)
routes.include_router(logs.routes)
routes.include_router(console.routes)


class _Application(FastAPI):
    """FastAPI with the measuring around everything, its answers to unexpected errors included."""

    def build_middleware_stack(self) -> ASGIApp:
        metrics = self.state.gateway.metrics
        return TelemetryMiddleware(
            super().build_middleware_stack(), metrics, self.state.is_behind_serve
        )


def build_http(gateway: Gateway, is_behind_serve: bool = False) -> FastAPI:
    """The ASGI application of one gateway."""
    app = _Application(
        title="llm-backend",
        version="0.1.0",
        openapi_url="/openapi.json",
        docs_url=None,  # FastAPI's page runs scripts of a foreign server; ours is a file
        redoc_url=None,
        redirect_slashes=False,  # a redirect is no answer to a POST, and follows the Host header
    )
    app.state.gateway = gateway
    app.state.guard = Guard.of(gateway.settings)
    app.state.is_behind_serve = is_behind_serve
    app.include_router(routes)
    names = list(gateway.settings.models)
    app.openapi = lambda: document(app, names)  # type: ignore[method-assign]
    app.add_middleware(_HeaderLimits)
    if gateway.settings.http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.settings.http.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(_HeadAsGet)
    app.add_exception_handler(BackendError, _on_backend_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)
    return app


class _HeaderLimits:
    """Refuses what Serve's proxy lets through, whatever the route.

    (1) More bytes of headers than any client has a use for. (2) Two lengths of one body, by which
    two servers in a row can be made to disagree where it ends. (3) Serve's own headers: with one
    the gateway does not see that its client leaves, so the engine goes on for no client; the other
    cuts a stream without an error event.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            names = {name for name, _ in headers}
            error: BackendError | None = None
            if sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:  # (1)
                error = HeadersTooLarge(f"The headers have more than {_MAX_HEADER_BYTES} bytes.")
            elif {b"transfer-encoding", b"content-length"} <= names:  # (2)
                error = InvalidRequest("Transfer-Encoding and Content-Length exclude each other.")
            elif steering := next((name for name in _STEERING if name in names), None):  # (3)
                error = InvalidRequest(f"{steering.decode().title()} is not taken here.")
            if error:
                response = await _on_backend_error(Request(scope), error)
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)


class _HeadAsGet:
    """Answers HEAD as GET, without the body. Of an answer that goes on and on, the head alone: what
    makes it is told that its client has left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        is_told = asyncio.Event()

        async def receive_until_told() -> Message:
            if is_told.is_set():
                return {"type": "http.disconnect"}
            return await receive()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not is_told.is_set():
                is_told.set()
                await send(chunk(b"", is_last=True))

        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive_until_told, send_head)
        finally:
            scope["route"] = inner.get("route")  # for the layers around this one


async def _on_backend_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, BackendError)
    request_context().note_error(exc)
    status, headers, body = error_response(exc, dialect_of(request.url.path, request.headers))
    return Response(body, status, dict(headers))


async def _on_validation_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return await _on_backend_error(request, invalid_field(exc.errors()[0]))


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code != 405:
        return await _on_backend_error(request, NotFound(_no_such(request)))
    error = MethodNotAllowed(f"{request.method} is not allowed here.")
    response = await _on_backend_error(request, error)
    response.headers["allow"] = ", ".join(_allowed_methods(request))
    return response


def _no_such(request: Request) -> str:
    """Names the right address where `/v1` is missing or too much, as many base URLs have it."""
    path = request.url.path
    steps = [step for step in path.split("/") if step]
    while steps[:1] == ["v1"]:
        del steps[0]
    for meant in ("/".join(["", "v1", *steps]), "/".join(["", *steps])):
        if steps and meant != path and len(path) <= 100 and _routes_at(request, meant):
            return f"There is no {path} here; did you mean {meant}?"
    return f"There is no {path[:100]}."


def _routes_at(request: Request, path: str) -> list[Route]:
    """All routes at an address, whatever their methods."""
    scope = {**request.scope, "path": path}
    return [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
    ]


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes at this address; Starlette's own `Allow` names those of the first."""
    here = _routes_at(request, request.scope["path"])
    methods = {method for route in here for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


async def _on_exception(request: Request, exc: Exception) -> Response:
    logger.error("unexpected error", exc_info=exc)
    return await _on_backend_error(request, BackendError("Internal error."))


@serve.ingress()
class GatewayDeployment:
    """The gateway on Ray Serve."""

    def __init__(self, settings: Settings, switchboard: DeploymentHandle) -> None:
        end_with_parent()
        write_to_file(settings.home, "gateway", context=RequestFields())
        self._gateway = Gateway(settings, behind(switchboard))
        # What is there now stays: no collection that a large body sets off looks at it again.
        gc.collect()
        gc.freeze()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(self._gateway, is_behind_serve=True)
