"""Follows `GET /admin/events` over every interruption."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from serve_app.client.errors import APIError, DeadlineExceeded, Unreachable
from serve_app.client.sse import Block, blocks
from serve_app.client.transport import Deadline, Transport, translated

_SILENCE_S = 30.0  # the backend says something every ten; a longer silence is a dead connection
_RETRY_S = 1.0  # before coming again, where the stream has not said


@dataclass(frozen=True)
class Event:
    """Something that happened to the models.

    `kind`: `switch` (data: a ticket), `engine_lost`, `failure`, `lease`; `gap`: something before
    the next event is missing; `connected`: the stream stands, for the first time or again.
    """

    kind: str
    data: dict[str, Any]
    id: str | None = None


async def follow(
    line: Transport, last_id: str | None, patience_s: float
) -> AsyncGenerator[Event, None]:
    """Every event after `last_id`, or from now on; comes again by itself after an interruption.

    Raises:
        Unreachable: at first, or later for `patience_s`.
        APIError: the backend does not allow it.
    """
    retry_s, patience = _RETRY_S, Deadline(line.clock, patience_s)
    is_first = True
    while True:
        try:
            async with aclosing(_connection(line, last_id, patience)) as stream:
                async for block in stream:
                    is_first, patience = False, Deadline(line.clock, patience_s)
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
        await line.clock.sleep(retry_s)


async def _connection(
    line: Transport, last_id: str | None, patience: Deadline
) -> AsyncGenerator[Block, None]:
    """One connection's blocks; ends with it."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    head = Deadline(line.clock, min(_SILENCE_S, patience.left_s))
    async with (
        line.open("GET", "/admin/events", head, headers=headers) as response,
        aclosing(blocks(response.aiter_lines())) as stream,
    ):
        while block := await _next(line, stream):
            yield block


async def _next(line: Transport, stream: AsyncIterator[Block]) -> Block | None:
    try:
        with translated(line.base_url):
            async with asyncio.timeout(_SILENCE_S):
                return await anext(stream, None)
    except TimeoutError as exc:
        raise Unreachable(f"{line.base_url} stopped sending.") from exc
