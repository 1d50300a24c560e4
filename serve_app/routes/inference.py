"""The routes for everybody: health, the models, and what the models answer."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from serve_app.cache.shared_answer import Question
from serve_app.gateway.admission import AdmissionRequest, OnAbsent
from serve_app.gateway.gateway import Gateway, Here
from serve_app.gateway.relay import EngineRequest, EngineResponse
from serve_app.gateway.switchboard_client import ask
from serve_app.protocol.calls import CALLS, Call, dialect_of
from serve_app.protocol.errors import Dialect
from serve_app.routes import params
from serve_app.routes.auth import check_admin, check_user, namespace_of
from serve_app.validation import reading
from serve_app.validation.body import encode, validate
from serve_app.validation.images import prepare

open_routes = APIRouter()  # for everybody, with a key or without
routes = APIRouter(dependencies=[Depends(check_user)])


@open_routes.get("/health", tags=["state"])
async def health(gateway: Here) -> dict[str, Any]:
    """Liveness: answers 200 whatever the models do."""
    return gateway.health()


@open_routes.get("/health/ready", tags=["state"])
async def ready(gateway: Here) -> JSONResponse:
    """200 while a model serves, 503 else."""
    state = gateway.health()
    return JSONResponse(state, 200 if state["resident"] else 503)


@routes.get("/models", tags=["models"])
@routes.get("/v1/models", tags=["models"])
async def models(request: Request, gateway: Here) -> dict[str, Any]:
    """All models, resident or not; in Anthropic's shape where `anthropic-version` is sent."""
    specs = gateway.settings.models.values()
    if _speaks_anthropic(request):
        names = list(gateway.settings.models)
        listed = [gateway.model_for_anthropic(spec) for spec in specs]
        return {"data": listed, "has_more": False, "first_id": names[0], "last_id": names[-1]}
    return {"object": "list", "data": [gateway.model(spec) for spec in specs]}


@routes.get("/v1/models/{name}", tags=["models"])
async def model(name: str, request: Request, gateway: Here) -> dict[str, Any]:
    """One model, resident or not; in Anthropic's shape where `anthropic-version` is sent."""
    reading.check_known(name, gateway.settings.models)
    spec = gateway.settings.models[name]
    return gateway.model_for_anthropic(spec) if _speaks_anthropic(request) else gateway.model(spec)


def _speaks_anthropic(request: Request) -> bool:
    return dialect_of(request.url.path, request.headers) is Dialect.ANTHROPIC


async def generate(call: Call, request: Request, gateway: Gateway) -> Response:
    """The one way of a request to an engine: read, check, admit, forward, relay."""
    now = asyncio.get_running_loop().time()
    deadline = now + gateway.settings.limits.request_timeout_s
    wait_deadline = min(deadline, now + params.max_wait_s(request))
    intent = params.intent(request)
    wants_cache = params.wants_cache(request)
    if intent is OnAbsent.FORCE:
        await check_admin(request)
    job, value = await _read_job(call, request, gateway, deadline)
    target = params.target(job.model, call.task, gateway.settings.models)
    wish = AdmissionRequest(
        target, deadline, intent, wait_deadline, gateway.admission.last_failure(target)
    )

    async def make() -> EngineResponse:
        if intent is OnAbsent.FORCE and not gateway.admission.is_resident(target):
            await ask(gateway.switchboard.begin_switch(target, 0.0, None))
        return EngineResponse(gateway.admission, gateway.sessions, wish, job)

    question = Question(
        path=call.path,
        body=value,
        model=job.model,
        target=target,
        namespace=namespace_of(request),
        terms=(intent, request.headers.get("x-max-wait")),
        deadline=deadline,
        epoch=gateway.admission.serving_epoch(target),
        dialect=call.dialect,
        is_refused=not wants_cache,
    )
    return await gateway.cache.answer(question, make)


async def _read_job(
    call: Call, request: Request, gateway: Gateway, deadline: float
) -> tuple[EngineRequest, dict[str, Any]]:
    """What the engine is to be sent, and its JSON. Raises InvalidRequest, UnknownModel, and their
    like."""
    limits = gateway.settings.limits
    raw = await reading.read_body(request, limits.max_body_bytes, deadline)
    examined = await validate(call, raw, gateway.settings)
    value, found = examined.value, examined.pictures
    has_changed = bool(found) and await prepare(found, limits)
    job = EngineRequest(
        model=value["model"],
        path=call.path,
        body=encode(value) if has_changed or examined.has_changed else raw,
        is_stream=bool(value.get("stream")),
        ending=call.ending(examined.body.num_choices),
        dialect=call.dialect,
    )
    return job, value


def _add(call: Call) -> None:
    async def endpoint(request: Request, gateway: Here) -> Response:
        return await generate(call, request, gateway)

    routes.add_api_route(
        call.path, endpoint, methods=["POST"], tags=["models"], response_class=Response
    )


for _call in CALLS:
    _add(_call)
