"""The routes for everybody: health, the models, and what the models answer."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app import requests
from serve_app.admission import Intent, Wish
from serve_app.auth import check_admin
from serve_app.forwarding import EngineAnswer, Job
from serve_app.gateway import Here
from serve_app.switchboard_client import ask

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
    listed = [gateway.model(spec) for spec in gateway.settings.models.values()]
    return {"object": "list", "data": listed}


@routes.get("/v1/models/{name}", tags=["models"])
async def model(name: str, gateway: Here) -> dict[str, Any]:
    """One model, resident or not."""
    requests.check_known(name, gateway.settings.models)
    return gateway.model(gateway.settings.models[name])


@routes.post("/v1/chat/completions", tags=["models"], response_class=Response)
async def chat(request: Request, gateway: Here) -> Response:
    """A chat completion; what is done where its model is not resident, `X-Switch` says."""
    limits = gateway.settings.limits
    deadline = asyncio.get_running_loop().time() + limits.request_timeout_s
    wait_deadline = min(
        deadline, deadline - limits.request_timeout_s + requests.max_wait_s(request)
    )
    intent = requests.intent(request)
    if intent is Intent.FORCE:
        check_admin(request)
    body, value = await requests.read_json(request, limits.max_body_bytes, deadline)
    model = requests.wanted_model(value, gateway.settings.models)
    is_stream, num_choices = requests.check_chat(value)
    wish = Wish(model, deadline, intent, wait_deadline, gateway.admission.last_failure(model))
    if intent is Intent.FORCE and not gateway.admission.is_resident(model):
        await ask(gateway.switchboard.begin_switch(model, 0.0, None))
    job = Job(wish, request.url.path, body, is_stream, num_choices)
    return EngineAnswer(gateway.admission, gateway.sessions, job)
