"""The public routes: health, the list of models, and the models' answers."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Send

from deployments.settings.names import NamedModel
from serve_app.cache.shared_answer import CacheRequest
from serve_app.gateway.admission import AdmissionRequest, OnAbsent
from serve_app.gateway.gateway import Gateway, GatewayDep
from serve_app.gateway.relay import EngineRequest, Relay
from serve_app.gateway.switchboard_client import ask
from serve_app.protocol.asgi import Handled
from serve_app.protocol.calls import CALLS, Call, dialect_of
from serve_app.protocol.errors import Dialect
from serve_app.routes import params
from serve_app.routes.auth import check_admin, check_user, namespace_of
from serve_app.telemetry.context import request_context
from serve_app.validation import reading
from serve_app.validation.body import encode, validate
from serve_app.validation.images import prepare_pictures

open_routes = APIRouter()  # no key needed
routes = APIRouter(dependencies=[Depends(check_user)])


@open_routes.get("/health", tags=["state"])
async def health(gateway: GatewayDep) -> dict[str, Any]:
    """Answers 200 while the gateway lives, whether or not a model serves."""
    return gateway.health()


@open_routes.get("/health/ready", tags=["state"])
async def ready(gateway: GatewayDep) -> JSONResponse:
    """Answers 200 while a model serves, else 503."""
    state = gateway.health()
    return JSONResponse(state, 200 if state["resident"] else 503)


@routes.get("/models", tags=["models"])
@routes.get("/v1/models", tags=["models"])
async def models(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """List all models, resident or not; in Anthropic's format if `anthropic-version` is sent."""
    listed = [_described(named, request, gateway) for named in gateway.names.listed()]
    if _speaks_anthropic(request):
        ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
        return {"data": listed, "has_more": False} | ends
    return {"object": "list", "data": listed}


@routes.get("/v1/models/{name}", tags=["models"])
async def model(name: str, request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Describe a model, resident or not; in Anthropic's format if `anthropic-version` is sent."""
    return _described(reading.find_model(name, gateway.names), request, gateway)


def _described(named: NamedModel, request: Request, gateway: Gateway) -> dict[str, Any]:
    is_anthropic = _speaks_anthropic(request)
    describe = gateway.model_for_anthropic if is_anthropic else gateway.model
    return describe(named.spec) | {"id": named.asked}


def _speaks_anthropic(request: Request) -> bool:
    return dialect_of(request.url.path, request.headers) is Dialect.ANTHROPIC


async def generate(
    call: Call, request: Request, gateway: Gateway, receive: Receive, send: Send
) -> None:
    """Answer one request, from its first header to its last byte.

    (1) Read the headers. (2) Read and check the body. (3) Answer from the cache, or (4) start a
    switch, if the client forces one, and relay the engine's answer.

    Raises:
        BackendError: only before anything is sent.
    """
    now = asyncio.get_running_loop().time()  # (1)
    deadline = now + gateway.settings.limits.request_timeout_s
    wait_deadline = min(deadline, now + params.max_wait_s(request))
    on_absent = params.on_absent(request)
    wants_cache = params.wants_cache(request)
    if on_absent is OnAbsent.FORCE:
        await check_admin(request)
    engine_request, value, asked = await _read(call, request, gateway, deadline)  # (2)
    target = params.target(engine_request.model, call.task, gateway.names, "model")
    request_context().model = engine_request.model
    admission_request = AdmissionRequest(
        target, deadline, on_absent, wait_deadline, gateway.admission.last_failure(target)
    )

    async def prepare() -> Relay:  # (4)
        if on_absent is OnAbsent.FORCE and not gateway.admission.is_resident(target):
            await ask(gateway.switchboard.begin_switch(target, 0.0, None))
        return Relay(gateway.admission, gateway.sessions, admission_request, engine_request)

    cache_request = CacheRequest(
        path=call.path,
        body=value | {"model": asked},  # an answer names the model as it was asked for
        model=engine_request.model,
        target=target,
        namespace=namespace_of(request),
        terms=(on_absent, request.headers.get("x-max-wait")),
        deadline=deadline,
        epoch=gateway.admission.serving_epoch(target),
        dialect=call.dialect,
        is_refused=not wants_cache,
    )
    await gateway.cache.answer(cache_request, prepare, receive, send)  # (3)


async def _read(
    call: Call, request: Request, gateway: Gateway, deadline: float
) -> tuple[EngineRequest, dict[str, Any], str]:
    """Read and check the body.

    Return the request for the engine, its JSON, and the model's name as it was asked for.

    Raises:
        InvalidRequest, UnknownModel
    """
    limits = gateway.settings.limits
    raw = await reading.read_body(request, limits.max_body_bytes, deadline)
    valid = await validate(call, raw, gateway.settings, gateway.names)
    value, found = valid.value, valid.pictures
    has_changed = bool(found) and await prepare_pictures(found, limits)
    engine_request = EngineRequest(
        model=value["model"],
        path=call.path,
        body=encode(value) if has_changed or valid.has_changed else raw,
        is_stream=bool(value.get("stream")),
        stream_check=call.stream_check(valid.body.num_choices),
        dialect=call.dialect,
        rewrites=_rewrites(valid.model, call.path),
    )
    return engine_request, value, valid.model.asked


def _rewrites(model: NamedModel, path: str) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer says otherwise than the engine: the model's name as it was asked for, and the
    reasoning under the name that most clients read."""
    rewrites = []
    if model.asked != model.spec.name:
        pair = (f'"model":{json.dumps(name)}'.encode() for name in (model.spec.name, model.asked))
        rewrites.append((next(pair), next(pair)))
    if model.spec.engine.reasoning_parser and path == "/v1/chat/completions":
        rewrites.append((b'"reasoning":', b'"reasoning_content":'))
    return tuple(rewrites)


def _add(call: Call) -> None:
    async def endpoint(request: Request, gateway: GatewayDep) -> Response:
        return Handled(lambda receive, send: generate(call, request, gateway, receive, send))

    routes.add_api_route(
        call.path, endpoint, methods=["POST"], tags=["models"], response_class=Response
    )


for _call in CALLS:
    _add(_call)
