"""The routes of `/admin`: switches, leases, events, status, and the response cache."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.residency import TicketState
from serve_app.gateway.gateway import GatewayDep
from serve_app.gateway.switchboard_client import ask
from serve_app.protocol.asgi import EventStream
from serve_app.routes import params
from serve_app.routes.auth import check_admin
from serve_app.routes.event_stream import pieces
from serve_app.routes.params import LeaseRequest, SwitchRequest, UnloadRequest

_MAX_SWITCH_WAIT_S = 1800.0
_UPLOAD_S = 30.0

routes = APIRouter(tags=["admin"], dependencies=[Depends(check_admin)])


@routes.post("/admin/switch")
async def switch(request: Request, gateway: GatewayDep) -> JSONResponse:
    """Make a model resident: answers 202 with a ticket, or with `wait` the finished ticket.

    With `dry_run`: answers 200 with what would happen, and changes nothing.
    """
    body = await params.read_admin(request, SwitchRequest, _UPLOAD_S)
    target = params.target(body.model, body.task, gateway.names)
    if body.dry_run:
        return JSONResponse(await ask(gateway.switchboard.would_switch(target)))
    wait_s = _MAX_SWITCH_WAIT_S if body.wait else None
    ticket = await ask(
        gateway.switchboard.begin_switch(target, body.drain_timeout_s, wait_s), wait_s or 0
    )
    return JSONResponse(ticket, _ticket_status(ticket))


@routes.post("/admin/unload")
async def unload(request: Request, gateway: GatewayDep) -> JSONResponse:
    """Unload the resident model; the next request loads its own. Answers like `/admin/switch`."""
    body = await params.read_admin(request, UnloadRequest, _UPLOAD_S)
    wait_s = _MAX_SWITCH_WAIT_S if body.wait else None
    ticket = await ask(gateway.switchboard.unload(body.drain_timeout_s, wait_s), wait_s or 0)
    return JSONResponse(ticket, _ticket_status(ticket))


@routes.post("/admin/lease")
async def lease(request: Request, gateway: GatewayDep) -> JSONResponse:
    """Keep a model resident for a time.

    Answers 202 with the lease and the ticket of the switch, or 200 if it is resident already.
    """
    body = await params.read_admin(request, LeaseRequest, _UPLOAD_S)
    target = params.target(body.model, body.task, gateway.names)
    answer = await ask(gateway.switchboard.lease(target, body.seconds, body.owner))
    return JSONResponse(answer, _ticket_status(answer["ticket"]))


@routes.delete("/admin/lease")
async def end_lease(gateway: GatewayDep) -> dict[str, Any]:
    """End the lease, if there is one."""
    return await ask(gateway.switchboard.end_lease())


@routes.get("/admin/switch/{ticket_id}")
async def ticket(ticket_id: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return the ticket of a switch."""
    return await ask(gateway.switchboard.ticket(ticket_id))


@routes.get("/admin/switches")
async def switches(
    gateway: GatewayDep, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> dict[str, Any]:
    """Return the tickets of the last switches, newest first."""
    return {"object": "list", "data": await ask(gateway.switchboard.tickets(limit))}


@routes.get("/admin/events", response_class=Response)
async def events(request: Request, gateway: GatewayDep) -> Response:
    """Stream each phase of each switch, lost engines, failures and leases, as server-sent events.

    With `Last-Event-ID`, the stream continues after that event.
    """
    after = params.event_id(request)
    first = await ask(gateway.switchboard.events(after, 0))
    return EventStream(pieces(gateway.switchboard, first))


@routes.get("/admin/status")
async def status(gateway: GatewayDep) -> dict[str, Any]:
    """Return the Switchboard's status, and this gateway's counts of requests."""
    return await ask(gateway.switchboard.status()) | {
        "in_flight": gateway.admission.num_in_flight,
        "queued": gateway.admission.num_queued,
        "profile": gateway.settings.profile,
    }


@routes.get("/admin/cache")
async def cache(gateway: GatewayDep) -> dict[str, Any]:
    """Return what the response cache holds, and its counts since the start."""
    return await gateway.cache.stats()


@routes.delete("/admin/cache")
async def clear_cache(gateway: GatewayDep) -> dict[str, Any]:
    """Delete all cached answers, and do not keep those in progress; return the number deleted."""
    return {"deleted": await gateway.cache.clear()}


def _ticket_status(ticket: dict[str, Any]) -> int:
    state = TicketState(ticket["state"])
    if state is TicketState.DONE:
        return 200
    return 503 if state.is_over else 202
