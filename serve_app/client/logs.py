"""Reads a service's log line by line."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from serve_app.client.errors import Unreachable
from serve_app.client.sse import blocks
from serve_app.client.transport import Deadline, Transport, translated

_SILENCE_S = 30.0  # the backend sends a heartbeat every 10 s; after 30 s the connection is dead


async def lines(
    transport: Transport, service: str, num_lines: int, follow: bool, deadline: Deadline
) -> AsyncGenerator[str, None]:
    """Yield the last lines of a service's log; with `follow`, then new lines without an end.

    For the service `all`, each line begins with its service.

    Raises:
        Unreachable, DeadlineExceeded, APIError
    """
    path = f"/admin/logs/{quote(service, safe='')}?lines={num_lines}"
    if not follow:
        async with transport.open("GET", path, deadline) as response:
            with translated(transport.base_url):
                await deadline.bound(response.aread())
            for text in response.text.split("\n")[:-1]:
                yield text
        return
    async with (
        transport.open("GET", f"{path}&follow=true", deadline) as response,
        aclosing(blocks(response.aiter_lines())) as stream,
    ):
        while True:
            try:
                with translated(transport.base_url):
                    async with asyncio.timeout(_SILENCE_S):
                        block = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                raise Unreachable(
                    f"{transport.base_url} has sent nothing for {_SILENCE_S:.0f} s."
                ) from exc
            if block.data:
                yield f"{block.event} | {block.data}" if service == "all" else block.data
