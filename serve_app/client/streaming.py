"""Reads a streamed answer chunk by chunk."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from serve_app.client.errors import AnswerCut, error_of
from serve_app.client.sse import blocks
from serve_app.client.transport import Deadline, Transport


async def chunks(
    transport: Transport, path: str, body: object, headers: dict[str, str], deadline: Deadline
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a streamed answer until `[DONE]`.

    Raises:
        AnswerCut: the stream ended without `[DONE]`, its connection broke, or it reported an error
            after the first chunk.
        Unreachable, DeadlineExceeded, APIError
    """
    has_begun = False
    async with (
        transport.open("POST", path, deadline, json=body, headers=headers) as response,
        aclosing(_data(response, deadline)) as stream,
    ):
        async for data in stream:
            if data == "[DONE]":
                return
            chunk: dict[str, Any] = json.loads(data)
            if "error" in chunk:
                error = error_of(response.status_code, {}, data.encode())
                raise AnswerCut(error.message, error.code) if has_begun else error
            has_begun = True
            yield chunk
    raise AnswerCut("The stream ended before the answer was complete.")


async def _data(response: httpx.Response, deadline: Deadline) -> AsyncGenerator[str, None]:
    """Yield the data of a stream's events, without its heartbeats."""
    async with aclosing(blocks(response.aiter_lines())) as stream:
        while True:
            try:
                block = await deadline.bound(anext(stream, None))
            except httpx.TransportError as exc:
                raise AnswerCut("The connection broke before the answer was complete.") from exc
            if block is None:
                return
            if block.data:
                yield block.data
