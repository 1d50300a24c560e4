"""Relays one request to the engine and its answer to the client: bytes in, bytes out.

A request ends in exactly one of: a complete answer; a complete stream; a stream that ends with one
error event; an error response. `stream_end.py` decides whether a stream is complete.

The relay sends the head of a stream only when the engine has begun to answer, so that an error
until then still has its own status. Heartbeats, while the request waits for its model, send it
earlier.
"""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from starlette.types import Receive, Send

from deployments.engine.client import engine_session, is_healthy
from serve_app.gateway.admission import Admission, AdmissionRequest, Slot, switching_error
from serve_app.gateway.engine_errors import engine_error
from serve_app.protocol.asgi import chunk, event_stream_headers, start, while_client_stays
from serve_app.protocol.errors import (
    BackendError,
    BadAnswer,
    DeadlineExceeded,
    Dialect,
    EngineLost,
    error_event,
    error_response,
)
from serve_app.protocol.heartbeat import heartbeat
from serve_app.protocol.stream_end import ABORTED, SEPARATOR, StreamCheck
from serve_app.telemetry.context import request_context
from serve_app.validation.threads import in_thread_if_large

_HEARTBEAT_S = 1.5  # under the 2 s after which many clients and proxies check a silent connection
_IDLE_S = 2.0  # less than vLLM's 5 s, so that we never use a connection that vLLM is closing
# Routes whose streams do not say why they are refused -> the field that limits an answer's length.
_LENGTHS = {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}

logger = logging.getLogger("llm_backend.gateway")


class _Pool:
    """The connections to one engine, and how many requests use them."""

    def __init__(self, endpoint: str) -> None:
        self.num_users = 0
        self.session = engine_session(Path(endpoint), None, limit=0, keepalive_timeout=_IDLE_S)


class EngineSessions:
    """HTTP connections to engines, one pool for each engine's socket.

    A pool is closed when no request uses it and another engine is asked for, so a late request to
    an old engine never ends a stream of the new one.
    """

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}

    @asynccontextmanager
    async def to(self, endpoint: str) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield the session of the engine at `endpoint`."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools[endpoint] = _Pool(endpoint)
        pool.num_users += 1  # before the first await: from here on no other request closes it
        try:
            await self._close([e for e, p in self._pools.items() if not p.num_users])
            yield pool.session
        finally:
            pool.num_users -= 1

    async def close(self) -> None:
        """Close all pools, used or not."""
        await self._close(list(self._pools))

    async def _close(self, endpoints: list[str]) -> None:
        closing = [self._pools.pop(endpoint).session.close() for endpoint in endpoints]
        if closing:
            await asyncio.shield(asyncio.gather(*closing))  # also if this request is cut


@dataclass
class EngineRequest:
    """A checked request for an engine."""

    model: str
    path: str
    body: bytes
    is_stream: bool
    stream_check: StreamCheck
    dialect: Dialect
    rewrites: tuple[tuple[bytes, bytes], ...] = ()  # in the answer's JSON: old bytes -> new

    def rewritten(self, answer: bytes) -> bytes:
        """Return an answer, or whole events of one, with the names that the client expects.

        Each old text begins with a key of JSON in its quotes, which no JSON string holds unescaped.
        """
        for old, new in self.rewrites:
            answer = answer.replace(old, new)
        return answer


class Relay:
    """Answers one request: waits until it is admitted, forwards it, and relays the answer."""

    def __init__(
        self,
        admission: Admission,
        sessions: EngineSessions,
        admission_request: AdmissionRequest,
        request: EngineRequest,
    ) -> None:
        self._admission = admission
        self._sessions = sessions
        self._admission_request = admission_request
        self._request = request
        self._has_started = False
        self._num_events = 0  # events of the stream sent so far
        self.error: BackendError | None = (
            None  # the error that ended the answer; set before it is sent
        )

    async def answer(self, receive: Receive, send: Send) -> None:
        """Send the answer or an error; stop if the client disconnects."""
        async with while_client_stays(receive):
            try:
                await self._answer_once_admitted(send)
            except BackendError as error:
                await self._fail(send, error)

    async def _answer_once_admitted(self, send: Send) -> None:
        async def wait(decided: asyncio.Future[None]) -> None:
            """Wait for the decision; send heartbeats meanwhile if the request is a stream."""
            every_s = _HEARTBEAT_S if self._request.is_stream else None
            while not (await asyncio.wait([decided], timeout=every_s))[0]:
                await self._send_heartbeat(send)

        while True:
            async with self._admission.admit(self._admission_request, wait) as slot:
                context = request_context()
                context.epoch, context.queued_s = slot.epoch, slot.queued_s
                try:
                    async with asyncio.timeout_at(self._admission_request.deadline) as slot.limit:
                        if slot.is_cut:
                            raise switching_error(slot)
                        await self._forward(slot, send)
                    return
                except TimeoutError:
                    if slot.is_cut:
                        raise switching_error(slot) from None
                    raise DeadlineExceeded("The request exceeded its time limit.") from None
                except aiohttp.ClientConnectorError:
                    # The engine is gone or ending, and got nothing: the next engine answers.
                    await self._wait_for_next_epoch(slot, send)

    async def _send_heartbeat(self, send: Send) -> None:
        await self._start_stream(send, {})
        await send(chunk(heartbeat(self._request.model, self._request.dialect)))

    async def _wait_for_next_epoch(self, slot: Slot, send: Send) -> None:
        """Wait until the view no longer names the dead engine of this slot."""
        admission, loop = self._admission, asyncio.get_running_loop()
        heartbeat_at = loop.time() + _HEARTBEAT_S
        while admission.view and admission.view.admitting_epoch == slot.epoch:
            if loop.time() > self._admission_request.wait_deadline:
                raise EngineLost("The engine does not answer.", retry_after_s=5)
            if self._request.is_stream and loop.time() > heartbeat_at:
                heartbeat_at += _HEARTBEAT_S
                await self._send_heartbeat(send)
            await asyncio.sleep(
                0.1
            )  # rare, after a fault; ends when the Switchboard's view changes

    async def _forward(self, slot: Slot, send: Send) -> None:
        async with self._sessions.to(slot.endpoint) as session:
            try:
                async with _asking(session, self._request.path, self._request.body) as response:
                    if response.status != 200:
                        logger.info(
                            "the engine answered %d to %s", response.status, self._request.path
                        )
                        raise await _refusal(response, self._request.path)
                    if self._request.is_stream:
                        await self._relay_events(response, session, slot, send)
                    else:
                        await self._relay_whole(response, session, slot, send)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ClientError, ConnectionError) as exc:
                logger.warning("the engine of epoch %d closed a connection: %r", slot.epoch, exc)
                raise await self._cause(session) from exc

    async def _relay_whole(
        self,
        response: aiohttp.ClientResponse,
        session: aiohttp.ClientSession,
        slot: Slot,
        send: Send,
    ) -> None:
        body = await response.read()
        if ABORTED in body:
            raise await self._cause(session)
        if self._request.stream_check.needs_proof_of_life and not await is_healthy(session):
            raise _lost()
        body = self._request.rewritten(body)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await send(start(200, headers | provenance_headers(slot, self._request.model)))
        await send(chunk(body, is_last=True))

    async def _relay_events(
        self,
        response: aiohttp.ClientResponse,
        session: aiohttp.ClientSession,
        slot: Slot,
        send: Send,
    ) -> None:
        """Send whole events as they come.

        The first ones are held until the engine has begun to answer, and the last one until it is
        known that the answer is complete. After an error event of the engine nothing more is sent:
        its `[DONE]` would say that the answer is complete.
        """
        check, rest, held = self._request.stream_check, b"", b""
        async for data in response.content.iter_any():
            events, separator, rest = (rest + data).rpartition(SEPARATOR)
            if not separator:
                continue
            state = check.judge(events + separator)
            if state.is_lost:
                break
            if state.is_over and check.needs_proof_of_life and not await is_healthy(session):
                break
            held += state.good
            if held and not state.is_preamble:
                await self._start_stream(send, provenance_headers(slot, self._request.model))
                self._num_events += held.count(SEPARATOR)
                await send(chunk(self._request.rewritten(held), is_last=state.is_over))
                held = b""
            if state.error is not None:
                error = engine_error(500, state.error, self._request.path)
                raise await self._cause(session, error)
            if state.is_over:
                return
        raise await self._cause(session)

    async def _cause(
        self, session: aiohttp.ClientSession, reported: BackendError | None = None
    ) -> BackendError:
        """Find out why the engine did not complete its answer.

        (1) The request is wrong, as the engine's own error `reported` says. (2) The engine is gone.
        (3) The engine refused the request, but streams of this route do not say why: ask for a
        plain answer of one token, which does.
        """
        if reported and reported.status < 500:  # (1)
            return reported
        if not await is_healthy(session):  # (2)
            return _lost()
        length = _LENGTHS.get(self._request.path)
        if self._request.is_stream and length and not self._num_events:  # (3)
            body = self._request.body
            plain = await in_thread_if_large(
                len(body), lambda: _changed(body, {"stream": False, length: 1})
            )
            try:
                async with _asking(session, self._request.path, plain) as response:
                    if response.status != 200:
                        return await _refusal(response, self._request.path)
            except (aiohttp.ClientError, ConnectionError):
                return _lost()
        return reported or BadAnswer("The engine did not complete this answer.")

    async def _start_stream(self, send: Send, headers: dict[str, str]) -> None:
        if not self._has_started:
            self._has_started = True
            await send(start(200, event_stream_headers() | headers))

    async def _fail(self, send: Send, error: BackendError) -> None:
        self.error = error
        request_context().note_error(error)
        if self._has_started:
            event = error_event(error, self._request.dialect, self._num_events)
            await send(chunk(event, is_last=True))
            return
        status, headers, body = error_response(error, self._request.dialect)
        await send(start(status, dict(headers)))
        await send(chunk(body, is_last=True))


def _asking(
    session: aiohttp.ClientSession, path: str, body: bytes
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    return session.post(
        path,
        data=io.BytesIO(body),  # sent in pieces, so that a large body does not block the event loop
        headers={"content-type": "application/json"},
    )


async def _refusal(response: aiohttp.ClientResponse, path: str) -> BackendError:
    """Return the client's error; in a thread if the engine's is large."""
    body = await response.read()
    return await in_thread_if_large(len(body), lambda: engine_error(response.status, body, path))


def _changed(body: bytes, fields: dict[str, Any]) -> bytes:
    """Return the request with these fields replaced."""
    return msgspec.json.encode(msgspec.json.decode(body) | fields)


def _lost() -> EngineLost:
    return EngineLost("The engine ended while answering.", retry_after_s=5)


def provenance_headers(slot: Slot, model: str) -> dict[str, str]:
    """Return headers with the model, its epoch, the time in the queue, and the duration of the
    switch that the request waited for."""
    return {
        "x-model": model,
        "x-epoch": str(slot.epoch),
        "x-queue-ms": str(round(slot.queued_s * 1000)),
        "x-switch-ms": str(round(slot.switch_s * 1000)),
    }
