"""The ingress deployment: the ASGI application, with its middleware and error handlers."""

import asyncio
import gc
import logging

from fastapi import FastAPI, Request, Response
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
from serve_app.routes import Guard, openapi_document, routes
from serve_app.telemetry.context import RequestFields, request_context
from serve_app.telemetry.middleware import TelemetryMiddleware
from serve_app.validation.reading import invalid_field

_MAX_HEADER_BYTES = 32_768
# Headers that control Serve's proxy. HAProxy drops the second one, which Serve would obey before
# the request gets here.
_STEERING = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")

logger = logging.getLogger("llm_backend.gateway")


class _Application(FastAPI):
    """FastAPI with telemetry around everything, even around its answers to unexpected errors."""

    def build_middleware_stack(self) -> ASGIApp:
        metrics = self.state.gateway.metrics
        return TelemetryMiddleware(
            super().build_middleware_stack(), metrics, self.state.is_behind_serve
        )


def build_http(gateway: Gateway, is_behind_serve: bool = False) -> FastAPI:
    """Build the ASGI application of one gateway."""
    app = _Application(
        title="llm-backend",
        version="0.1.0",
        openapi_url="/openapi.json",
        docs_url=None,  # FastAPI's page loads scripts from another server; we serve our own
        redoc_url=None,
        redirect_slashes=False,  # a redirect does not work for a POST, and follows the Host header
    )
    app.state.gateway = gateway
    app.state.guard = Guard.of(gateway.settings)
    app.state.is_behind_serve = is_behind_serve
    app.include_router(routes)
    names = list(gateway.settings.models)
    app.openapi = lambda: openapi_document(app, names)  # type: ignore[method-assign]
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
    """Refuses requests with headers that Serve's proxy lets through, on every route.

    (1) More bytes of headers than any client needs. (2) Both lengths of a body, since two servers
    in a row may disagree where such a body ends. (3) Serve's own headers: one hides from the
    gateway that the client left, so the engine would go on for no client; the other cuts a stream
    without an error event.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            names = {name for name, _ in headers}
            error: BackendError | None = None
            if sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:  # (1)
                error = HeadersTooLarge(f"The headers are larger than {_MAX_HEADER_BYTES} bytes.")
            elif {b"transfer-encoding", b"content-length"} <= names:  # (2)
                error = InvalidRequest(
                    "A request must not have both Transfer-Encoding and Content-Length."
                )
            elif steering := next((name for name in _STEERING if name in names), None):  # (3)
                error = InvalidRequest(f"The header {steering.decode().title()} is not supported.")
            if error:
                response = await _on_backend_error(Request(scope), error)
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)


class _HeadAsGet:
    """Answers HEAD like GET, but without the body.

    After the head, the route sees its client disconnect, so that an endless stream ends too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        has_answered = asyncio.Event()

        async def receive_until_answered() -> Message:
            if has_answered.is_set():
                return {"type": "http.disconnect"}
            return await receive()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not has_answered.is_set():
                has_answered.set()
                await send(chunk(b"", is_last=True))

        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive_until_answered, send_head)
        finally:
            scope["route"] = inner.get("route")  # the access log and the metrics need it


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
        return await _on_backend_error(request, NotFound(_not_found_message(request)))
    error = MethodNotAllowed(f"{request.method} is not allowed for {request.url.path[:100]}.")
    response = await _on_backend_error(request, error)
    response.headers["allow"] = ", ".join(_allowed_methods(request))
    return response


def _not_found_message(request: Request) -> str:
    """Return a message that suggests the right path if `/v1` is missing or repeated in it.

    Clients with a wrong base URL send such paths.
    """
    path = request.url.path
    steps = [step for step in path.split("/") if step]
    while steps[:1] == ["v1"]:
        del steps[0]
    for suggestion in ("/".join(["", "v1", *steps]), "/".join(["", *steps])):
        if steps and suggestion != path and len(path) <= 100 and _routes_at(request, suggestion):
            return f"There is no route {path}; did you mean {suggestion}?"
    return f"There is no route {path[:100]}."


def _routes_at(request: Request, path: str) -> list[Route]:
    """Return all routes at a path, whatever their methods."""
    scope = {**request.scope, "path": path}
    return [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
    ]


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at the path; Starlette's `Allow` has the first one's."""
    found = _routes_at(request, request.scope["path"])
    methods = {method for route in found for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


async def _on_exception(request: Request, exc: Exception) -> Response:
    logger.error("an unexpected error ended a request", exc_info=exc)
    return await _on_backend_error(request, BackendError("Internal error."))


@serve.ingress()
class GatewayDeployment:
    """The gateway as a Ray Serve deployment."""

    def __init__(self, settings: Settings, switchboard: DeploymentHandle) -> None:
        end_with_parent()
        write_to_file(settings.home, "gateway", context=RequestFields())
        self._gateway = Gateway(settings, behind(switchboard))
        # The objects made so far stay: freeze them, so that the garbage collections that large
        # bodies trigger do not visit them again.
        gc.collect()
        gc.freeze()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(self._gateway, is_behind_serve=True)
