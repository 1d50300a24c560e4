"""What the Switchboard tells of itself, as server-sent events.

An event's id is `<boot>-<number>`. A client that comes back with its last id gets what it missed,
or, where that is no longer known or another boot counts anew, a `gap` event and then what there is.
"""

import json
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.switchboard import Switchboard
from deployments.view import EventPage
from serve_app.asgi import chunk, event_stream_headers, start, while_client_stays
from serve_app.errors import Unavailable
from serve_app.switchboard_client import ask

_HEARTBEAT_S = 10.0
_RETRY_MS = 1000  # a client whose stream has ended comes again after this


class EventStream(Response):
    """One listener. It holds one page of events at a time, however slowly the client reads."""

    def __init__(self, switchboard: Switchboard, first: EventPage) -> None:
        super().__init__()
        self._switchboard = switchboard
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with while_client_stays(receive):
            await self._relay(send)

    async def _relay(self, send: Send) -> None:
        page = self._first
        position = f"retry: {_RETRY_MS}\nid: {page.boot}-{page.last - len(page.events)}\n\n"
        await send(start(200, event_stream_headers()))
        await send(chunk(position.encode() + _page(page)))
        while True:
            after = (page.boot, page.last)
            try:
                page = await ask(self._switchboard.events(after, _HEARTBEAT_S), _HEARTBEAT_S)
            except Unavailable:
                break
            if page.boot != after[0]:  # the client comes again, and is told of the gap
                break
            await send(chunk(_page(page) or b": no news\n"))
        await send(chunk(b"", is_last=True))


def _page(page: EventPage) -> bytes:
    events = [_event(f"{page.boot}-{e.number}", e.kind, e.data) for e in page.events]
    if page.has_gap:
        events.insert(0, _event(f"{page.boot}-{page.last - len(page.events)}", "gap", {}))
    return "".join(events).encode()


def _event(event_id: str, kind: str, data: dict[str, Any]) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
