"""Follows `GET /admin/events`, and reconnects after an interruption."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from serve_app.client.errors import APIError, DeadlineExceeded, Unreachable
from serve_app.client.sse import Block, blocks
from serve_app.client.transport import Deadline, Transport, translated

_SILENCE_S = 30.0  # the backend sends a heartbeat every 10 s; after 30 s the connection is dead
_RETRY_S = 1.0  # seconds until a reconnect, unless the stream has named others


@dataclass(frozen=True)
class Event:
    """One event of the backend.

    `kind`: `switch` (data: a ticket), `engine_lost`, `failure` or `lease`; `gap`: events before
    the next one are missing; `connected`: the stream is connected, for the first time or again.
    """

    kind: str
    data: dict[str, Any]
    id: str | None = None


async def follow(
    transport: Transport, last_id: str | None, patience_s: float
) -> AsyncGenerator[Event, None]:
    """Yield every event after `last_id`, or from now on; reconnect after an interruption.

    Raises:
        Unreachable: the first connection failed, or no later one succeeded for `patience_s`.
        APIError: the backend refuses the stream.
    """
    retry_s, patience = _RETRY_S, Deadline(transport.clock, patience_s)
    is_first = True
    while True:
        try:
            async with aclosing(_connection(transport, last_id, patience)) as stream:
                async for block in stream:
                    is_first, patience = False, Deadline(transport.clock, patience_s)
                    last_id, retry_s = block.id or last_id, block.retry_s or retry_s
                    if block.data:
                        yield Event(block.event, json.loads(block.data), last_id)
                    elif block.id:
                        yield Event("connected", {}, last_id)
        except (Unreachable, DeadlineExceeded) as exc:
            if is_first or patience.left_s <= retry_s:
                raise Unreachable(str(exc)) from exc
        except APIError as exc:
            if exc.status != 503 or patience.left_s <= retry_s:
                raise
        await transport.clock.sleep(retry_s)


async def _connection(
    transport: Transport, last_id: str | None, patience: Deadline
) -> AsyncGenerator[Block, None]:
    """Yield the blocks of one connection until it ends."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    head = Deadline(transport.clock, min(_SILENCE_S, patience.left_s))
    async with (
        transport.open("GET", "/admin/events", head, headers=headers) as response,
        aclosing(blocks(response.aiter_lines())) as stream,
    ):
        while block := await _next(transport, stream):
            yield block


async def _next(transport: Transport, stream: AsyncIterator[Block]) -> Block | None:
    try:
        with translated(transport.base_url):
            async with asyncio.timeout(_SILENCE_S):
                return await anext(stream, None)
    except TimeoutError as exc:
        raise Unreachable(f"{transport.base_url} has sent nothing for {_SILENCE_S:.0f} s.") from exc
