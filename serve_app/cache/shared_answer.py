"""One client's answer from the cache, or from a generation that several clients share.

The `X-Cache` header says where the answer comes from:

    hit           a kept answer; with `; switch=avoided` if its model does not serve now
    miss          generated for this client, and kept if it is whole
    shared        generated once for several identical requests at the same time
    uncacheable   generated; answers to such requests are not kept
    off           generated; the client or the settings turned the cache off

A hit has a new id and time, the usage and `X-Model` of the kept answer, and `Age`. It has no
`X-Epoch`, because no load of the model produced it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Send

from serve_app.cache.recording import IdRewriter, Recording
from serve_app.cache.shared_generation import SharedGeneration
from serve_app.protocol.asgi import chunk, event_stream_headers, start, while_client_stays
from serve_app.protocol.errors import (
    BackendError,
    DeadlineExceeded,
    Dialect,
    ModelNotResident,
    error_event,
)
from serve_app.protocol.heartbeat import is_heartbeat
from serve_app.telemetry.context import request_context
from serve_app.validation.threads import in_thread_if_large

# Errors that depend on which client asked first, and when: another one asks once more.
_CALLER_SPECIFIC_ERRORS = (DeadlineExceeded, ModelNotResident)
_GRACE_S = 5.0  # past the deadline: the generation ends first, with its own error


@dataclass(frozen=True)
class CacheRequest:
    """A valid request, as the cache sees it."""

    path: str
    body: dict[str, Any]
    model: str
    target: str  # the model together with the task that the path asks for
    namespace: str  # of the caller; callers in other namespaces never get its answers
    terms: tuple[object, ...]  # of waiting; only requests on the same terms share a generation
    deadline: float  # in the event loop's time
    epoch: int | None  # the epoch in which the target serves; None if it does not
    dialect: Dialect
    is_refused: bool  # the client turned the cache off for this request


@dataclass
class Counts:
    """Counts the outcomes of requests to this cache since the gateway started."""

    hits: int = 0
    switches_avoided: int = 0  # hits for a model that did not serve
    misses: int = 0
    shared: int = 0
    uncacheable: int = 0
    off: int = 0
    stored: int = 0
    too_large: int = 0
    garbage: int = 0  # values in the store that are not whole answers in the cache's own form


def with_label(send: Send, label: str) -> Send:
    """A `send` that adds `X-Cache: <label>` to the head."""

    async def send_labelled(message: Message) -> None:
        await send(_labelled(message, label))

    return send_labelled


class SharedAnswer:
    """Answers one client from a shared generation.

    A client that joins a generation gets its answer, under an id of its own, and its failure too,
    except one that says only that the first client's time was over: then this one asks once more.
    """

    def __init__(
        self,
        join: Callable[[], tuple[SharedGeneration, bool]],
        counts: Counts,
        request: CacheRequest,
    ) -> None:
        self._join, self._counts, self._request = join, counts, request
        self._has_begun = False  # the head is with the client
        self._has_content = False  # and more than heartbeats

    async def answer(self, receive: Receive, send: Send) -> None:
        """Send the answer, or one error event where it has begun.

        Raises:
            BackendError: the generation's, where nothing was sent yet.
        """
        async with while_client_stays(receive):
            try:
                async with asyncio.timeout_at(self._request.deadline + _GRACE_S):
                    if not await self._serve_once(send, is_last_try=False):
                        await self._serve_once(send, is_last_try=True)
            except BackendError as error:
                if not self._has_begun:
                    raise
                request_context().note_error(error)
                event = error_event(error, self._request.dialect, num_events=0)
                await send(chunk(event, is_last=True))
            except TimeoutError:  # it reads nothing, so it can be told nothing
                if not self._has_begun:
                    raise

    async def _serve_once(self, send: Send, *, is_last_try: bool) -> bool:
        """Whether the client has its answer; if not, ask once more."""
        generation, is_first = self._join()
        with generation.subscribed():
            found = (None if is_first else generation.recorded) or await generation.found()
            if found:
                await self._replay(found, send)
                return True
            if is_first:
                self._counts.misses += 1
                return await self._follow(generation, send, "miss", None, is_last_try=True)
            self._counts.shared += 1
            return await self._follow(
                generation, send, "shared", IdRewriter(), is_last_try=is_last_try
            )

    async def _replay(self, found: Recording, send: Send) -> None:
        self._counts.hits += 1
        is_serving = self._request.epoch is not None
        self._counts.switches_avoided += not is_serving
        headers = {
            "content-type": "application/json",
            "x-model": self._request.model,
            "x-cache": "hit" if is_serving else "hit; switch=avoided",
            "age": str(max(0, int(time.time() - found.made_at))),
        }
        if found.is_stream:
            headers |= event_stream_headers()
        body = await in_thread_if_large(sum(map(len, found.parts)), found.replay)
        if not self._has_begun:
            await send(start(200, headers | {"content-length": str(len(body))}))
        await send(chunk(body, is_last=True))

    async def _follow(
        self,
        generation: SharedGeneration,
        send: Send,
        label: str,
        stamper: IdRewriter | None,
        *,
        is_last_try: bool,
    ) -> bool:
        """Send the generation's messages, the head together with the first piece of the body."""
        head: Message = {}
        position = 0
        while messages := await generation.messages_after(position):
            position += len(messages)
            may_repeat = not is_last_try and isinstance(generation.error, _CALLER_SPECIFIC_ERRORS)
            for message in messages:
                if message["type"] == "http.response.start":
                    head = _labelled(message, label)
                    continue
                body, is_last = message.get("body", b""), not message.get("more_body")
                if may_repeat and not self._has_content:
                    return False
                if is_last and generation.error:  # told here too; a status told before says nothing
                    request_context().note_error(generation.error)
                    if self._has_begun and head["status"] != 200:
                        raise generation.error  # heartbeats went out: only an event can carry it
                if stamper and head["status"] == 200 and not is_heartbeat(body):
                    body = stamper.feed(body, is_last=is_last)
                await self._send(send, head, body, is_stamped=stamper is not None, is_last=is_last)
        return True

    async def _send(
        self, send: Send, head: Message, body: bytes, *, is_stamped: bool, is_last: bool
    ) -> None:
        if not body and not is_last:
            return
        if not self._has_begun:
            self._has_begun = True
            await send(_without_length(head) if is_stamped else head)
        self._has_content = self._has_content or not is_heartbeat(body)
        await send(chunk(body, is_last=is_last))


def _labelled(message: Message, label: str) -> Message:
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [*message["headers"], (b"x-cache", label.encode())]}


def _without_length(head: Message) -> Message:
    headers = [(name, value) for name, value in head["headers"] if name != b"content-length"]
    return {**head, "headers": headers}
