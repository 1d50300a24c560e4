"""Builds ASGI messages, sends streams, and notices when a client disconnects."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


def start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    """Return the message that starts a response."""
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def chunk(body: bytes, *, is_last: bool = False) -> dict[str, Any]:
    """Return the message for one piece of a response's body."""
    return {"type": "http.response.body", "body": body, "more_body": not is_last}


def event_stream_headers() -> dict[str, str]:
    return {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",  # otherwise nginx buffers events until it has some kilobytes
    }


@asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Run the block, but cancel it when the client disconnects; that raises no error."""
    try:
        async with asyncio.timeout(None) as presence:
            watching = asyncio.ensure_future(_expire_when_client_leaves(receive, presence))
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if not presence.expired():
            raise


async def _expire_when_client_leaves(receive: Receive, presence: asyncio.Timeout) -> None:
    """Make `presence` expire when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.reschedule(asyncio.get_running_loop().time())


class Handled(Response):
    """A response that a handler sends itself; FastAPI's routes must return a response object."""

    def __init__(self, handle: Callable[[Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(receive, send)


class EventStream(Response):
    """Sends server-sent events until the generator ends or the client disconnects.

    An exception before the first event becomes an ordinary error response.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with while_client_stays(receive), aclosing(self._pieces) as pieces:
            first = await anext(pieces)
            await send(start(200, event_stream_headers()))
            await send(chunk(first))
            async for piece in pieces:
                await send(chunk(piece))
            await send(chunk(b"", is_last=True))
