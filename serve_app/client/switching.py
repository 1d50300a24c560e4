"""Follows one switch to its end."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from serve_app.client.errors import SwitchFailed, Unreachable
from serve_app.client.events import Event, follow
from serve_app.client.transport import Deadline, Transport

_LOOK_S = 1.0  # between phases: what the ticket waits for, and what is left of the estimate

Ticket = dict[str, Any]
OnProgress = Callable[[Ticket], object]  # may be a coroutine function


async def follow_switch(
    line: Transport,
    begin: Callable[[], Awaitable[Ticket]],
    deadline: Deadline,
    on_progress: OnProgress | None,
) -> Ticket:
    """The finished ticket of the switch that `begin` asks for.

    `on_progress` gets the ticket in each phase as it is entered, and about once a second between.
    The event stream is opened first, so that no phase is missed.

    Raises:
        SwitchFailed: it was rolled back, or failed.
        DeadlineExceeded: it goes on, and is no longer followed.
        Unreachable, APIError
    """
    async with aclosing(follow(line, None, deadline.left_s)) as events:
        await deadline.bound(anext(events))
        ticket = await begin()
        await _tell(on_progress, ticket)
        async with aclosing(_news(line, events, ticket["id"], deadline)) as tickets:
            while not _is_over(ticket):
                new = await anext(tickets)
                if _is_later(new, ticket):
                    ticket = new
                    await _tell(on_progress, ticket)
    if ticket["state"] != "done":
        raise SwitchFailed(ticket)
    return ticket


async def _news(
    line: Transport, events: AsyncGenerator[Event, None], ticket_id: str, deadline: Deadline
) -> AsyncGenerator[Ticket, None]:
    """The ticket, whenever there is something new of it to be seen or a second has passed."""
    coming = asyncio.ensure_future(_next(events))
    try:
        while True:
            await deadline.bound(asyncio.wait({coming}, timeout=_LOOK_S))
            event = None
            if coming.done():
                event = coming.result()
                coming = asyncio.ensure_future(_next(events))
            if event is None or event.kind in ("connected", "gap"):
                with suppress(Unreachable):  # the stream comes again, or gives up
                    yield await line.ask("GET", f"/admin/switch/{ticket_id}", deadline)
            elif event.kind == "switch" and event.data["id"] == ticket_id:
                yield event.data
    finally:
        coming.cancel()
        await asyncio.wait({coming})


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


async def _tell(on_progress: OnProgress | None, ticket: Ticket) -> None:
    if on_progress:
        told = on_progress(ticket)
        if inspect.isawaitable(told):
            await told


def _is_over(ticket: Ticket) -> bool:
    return ticket["state"] not in ("queued", "running")


def _is_later(new: Ticket, old: Ticket) -> bool:
    """An event may come after a look at the ticket that has seen more."""
    return _is_over(new) or len(new["phases"]) >= len(old["phases"])
