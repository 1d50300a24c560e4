"""Sends the Switchboard's events as server-sent events.

An event's id is `<boot>-<number>`; a restarted Switchboard is another boot and counts anew. A
client that reconnects with its last id gets the events that it missed. If they are of another
boot, or no longer kept, it gets a `gap` event, and then the events that are kept.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.messages import EventPage
from serve_app.gateway.switchboard_client import ask
from serve_app.protocol.errors import Unavailable

_HEARTBEAT_S = 10.0
_RETRY_MS = 1000  # clients reconnect after this time


async def pieces(switchboard: Switchboard, page: EventPage) -> AsyncGenerator[bytes, None]:
    """Yield one client's stream, from its first page of events on.

    Only one page is in memory at a time, however slowly the client reads.
    """
    position = f"retry: {_RETRY_MS}\nid: {page.boot}-{page.last - len(page.events)}\n\n"
    yield position.encode() + _page(page)
    while True:
        after = (page.boot, page.last)
        try:
            page = await ask(switchboard.events(after, _HEARTBEAT_S), _HEARTBEAT_S)
        except Unavailable:
            return
        if page.boot != after[0]:  # the client reconnects, and then gets a `gap` event
            return
        yield _page(page) or b": no new events\n"


def _page(page: EventPage) -> bytes:
    events = [_event(f"{page.boot}-{e.number}", e.kind, e.data) for e in page.events]
    if page.has_gap:
        events.insert(0, _event(f"{page.boot}-{page.last - len(page.events)}", "gap", {}))
    return "".join(events).encode()


def _event(event_id: str, kind: str, data: dict[str, Any]) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
