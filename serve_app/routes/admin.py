"""The admin's addresses: status, switches, leases, events."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.residency import TicketState
from serve_app.gateway.gateway import Here
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
async def switch(request: Request, gateway: Here) -> JSONResponse:
    """Make a model resident: 202 with a ticket, or with `wait` the finished ticket.

    With `dry_run`: 200 with what would happen, and nothing does.
    """
    wish = await params.read_admin(request, SwitchRequest, _UPLOAD_S)
    target = params.target(wish.model, wish.task, gateway.names)
    if wish.dry_run:
        return JSONResponse(await ask(gateway.switchboard.would_switch(target)))
    wait_s = _MAX_SWITCH_WAIT_S if wish.wait else None
    ticket = await ask(
        gateway.switchboard.begin_switch(target, wish.drain_timeout_s, wait_s), wait_s or 0
    )
    return JSONResponse(ticket, _ticket_status(ticket))


@routes.post("/admin/unload")
async def unload(request: Request, gateway: Here) -> JSONResponse:
    """Make no model resident, until one is asked for; answers like `/admin/switch`."""
    wish = await params.read_admin(request, UnloadRequest, _UPLOAD_S)
    wait_s = _MAX_SWITCH_WAIT_S if wish.wait else None
    ticket = await ask(gateway.switchboard.unload(wish.drain_timeout_s, wait_s), wait_s or 0)
    return JSONResponse(ticket, _ticket_status(ticket))


@routes.post("/admin/lease")
async def lease(request: Request, gateway: Here) -> JSONResponse:
    """Keep a model resident for a time: 202 with the lease and the ticket of the switch to it, or
    200 where it is resident already."""
    wish = await params.read_admin(request, LeaseRequest, _UPLOAD_S)
    target = params.target(wish.model, wish.task, gateway.names)
    answer = await ask(gateway.switchboard.lease(target, wish.seconds, wish.owner))
    return JSONResponse(answer, _ticket_status(answer["ticket"]))


@routes.delete("/admin/lease")
async def end_lease(gateway: Here) -> dict[str, Any]:
    """End the lease, if there is one."""
    return await ask(gateway.switchboard.end_lease())


@routes.get("/admin/switch/{ticket_id}")
async def ticket(ticket_id: str, gateway: Here) -> dict[str, Any]:
    """A switch's ticket."""
    return await ask(gateway.switchboard.ticket(ticket_id))


@routes.get("/admin/switches")
async def switches(
    gateway: Here, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> dict[str, Any]:
    """The last switches, newest first."""
    return {"object": "list", "data": await ask(gateway.switchboard.tickets(limit))}


@routes.get("/admin/events", response_class=Response)
async def events(request: Request, gateway: Here) -> Response:
    """Every phase of every switch as it is entered, lost engines, failures and leases, as
    server-sent events; goes on from `Last-Event-ID`."""
    after = params.event_id(request)
    first = await ask(gateway.switchboard.events(after, 0))
    return EventStream(pieces(gateway.switchboard, first))


@routes.get("/admin/status")
async def status(gateway: Here) -> dict[str, Any]:
    """What the Switchboard knows, and this gateway's counts."""
    return await ask(gateway.switchboard.status()) | {
        "in_flight": gateway.admission.num_in_flight,
        "queued": gateway.admission.num_queued,
        "profile": gateway.settings.profile,
    }


@routes.get("/admin/cache")
async def cache(gateway: Here) -> dict[str, Any]:
    """What the response cache holds, and what it has done since the start."""
    return await gateway.cache.stats()


@routes.delete("/admin/cache")
async def clear_cache(gateway: Here) -> dict[str, Any]:
    """Forget all answers, also those being made; says how many were kept."""
    return {"deleted": await gateway.cache.clear()}


def _ticket_status(ticket: dict[str, Any]) -> int:
    state = TicketState(ticket["state"])
    if state is TicketState.DONE:
        return 200
    return 503 if state.is_over else 202
