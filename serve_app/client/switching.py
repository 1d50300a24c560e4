"""Follows one switch to its end."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from serve_app.client.errors import SwitchFailed, Unreachable
from serve_app.client.events import Event, follow
from serve_app.client.transport import Deadline, Transport

_POLL_S = 1.0  # within a phase, `waits_for` and `eta_s` of the ticket change without an event

Ticket = dict[str, Any]
OnProgress = Callable[[Ticket], object]  # may be a coroutine function


async def follow_switch(
    transport: Transport,
    begin: Callable[[], Awaitable[Ticket]],
    deadline: Deadline,
    on_progress: OnProgress | None,
) -> Ticket:
    """Begin a switch with `begin`, follow it to its end, and return the finished ticket.

    `on_progress` gets the ticket as each phase begins, and about once a second in between. The
    event stream is opened before the switch begins, so that no phase is missed.

    Raises:
        SwitchFailed: the switch was rolled back or failed.
        DeadlineExceeded: the time is over; the switch continues.
        Unreachable, APIError
    """
    async with aclosing(follow(transport, None, deadline.left_s)) as events:
        await deadline.bound(anext(events))
        ticket = await begin()
        await _report(on_progress, ticket)
        async with aclosing(_updates(transport, events, ticket["id"], deadline)) as tickets:
            while not _is_over(ticket):
                new = await anext(tickets)
                if _is_later(new, ticket):
                    ticket = new
                    await _report(on_progress, ticket)
    if ticket["state"] != "done":
        raise SwitchFailed(ticket)
    return ticket


async def _updates(
    transport: Transport, events: AsyncGenerator[Event, None], ticket_id: str, deadline: Deadline
) -> AsyncGenerator[Ticket, None]:
    """Yield the ticket whenever an event changes it, and after each second without an event."""
    next_event = asyncio.ensure_future(_next(events))
    try:
        while True:
            await deadline.bound(asyncio.wait({next_event}, timeout=_POLL_S))
            event = None
            if next_event.done():
                event = next_event.result()
                next_event = asyncio.ensure_future(_next(events))
            if event is None or event.kind in ("connected", "gap"):
                with suppress(Unreachable):  # the event stream reconnects, or raises
                    yield await transport.ask("GET", f"/admin/switch/{ticket_id}", deadline)
            elif event.kind == "switch" and event.data["id"] == ticket_id:
                yield event.data
    finally:
        next_event.cancel()
        await asyncio.wait({next_event})


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


async def _report(on_progress: OnProgress | None, ticket: Ticket) -> None:
    if on_progress:
        result = on_progress(ticket)
        if inspect.isawaitable(result):
            await result


def _is_over(ticket: Ticket) -> bool:
    return ticket["state"] not in ("queued", "running")


def _is_later(new: Ticket, old: Ticket) -> bool:
    """Whether `new` is at least as recent: an event may arrive after a poll has seen more."""
    return _is_over(new) or len(new["phases"]) >= len(old["phases"])
