"""Sends the Switchboard's events as server-sent events.

An event's id is `<boot>-<number>`. A client that comes back with its last id gets what it missed,
or, where that is no longer known or another boot counts anew, a `gap` event and then what there is.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.messages import EventPage
from serve_app.gateway.switchboard_client import ask
from serve_app.protocol.errors import Unavailable

_HEARTBEAT_S = 10.0
_RETRY_MS = 1000  # a client whose stream has ended comes again after this


async def pieces(switchboard: Switchboard, page: EventPage) -> AsyncGenerator[bytes, None]:
    """What one listener is sent, from its first page on. One page of events is held at a time,
    however slowly the client reads."""
    position = f"retry: {_RETRY_MS}\nid: {page.boot}-{page.last - len(page.events)}\n\n"
    yield position.encode() + _page(page)
    while True:
        after = (page.boot, page.last)
        try:
            page = await ask(switchboard.events(after, _HEARTBEAT_S), _HEARTBEAT_S)
        except Unavailable:
            return
        if page.boot != after[0]:  # the client comes again, and is told of the gap
            return
        yield _page(page) or b": no news\n"


def _page(page: EventPage) -> bytes:
    events = [_event(f"{page.boot}-{e.number}", e.kind, e.data) for e in page.events]
    if page.has_gap:
        events.insert(0, _event(f"{page.boot}-{page.last - len(page.events)}", "gap", {}))
    return "".join(events).encode()


def _event(event_id: str, kind: str, data: dict[str, Any]) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
