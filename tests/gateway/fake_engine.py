"""An engine that keeps vLLM's contract for chat completions, and breaks it where a test says so."""

import asyncio
import json
import os
from contextlib import suppress
from enum import StrEnum
from typing import Any

from aiohttp import web

TOKENS = ["Grüß", "e aus ", "東京", " 🎬", ' "finish_reason":"stop" [DONE]\n\ndata: [DONE]']
TEXT = "".join(TOKENS)
DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Fault(StrEnum):
    """What goes wrong; on a stream after the second token, where nothing else is said."""

    DONE_WITHOUT_FINISH = "done_without_finish"  # vLLM as its EngineCore is killed
    DEATH_EVENT = "death_event"  # an error event of a dead EngineCore, and `[DONE]`
    ERROR_EVENT = "error_event"  # an error event of one request, and `[DONE]`
    RESET = "reset"
    RESET_BEFORE_ANSWER = "reset_before_answer"
    END_WITHOUT_DONE = "end_without_done"  # after a proper finish_reason
    ABORT = "abort"  # finish_reason "abort"
    BAD_REQUEST = "bad_request"  # 400
    DEAD = "dead"  # 500


class FakeEngine:
    """Serves on a Unix socket. Closing a gate holds every request there."""

    def __init__(self, path: str, model: str = "m") -> None:
        self.path, self.model = path, model
        self.fault: Fault | None = None
        self.is_bytewise = False  # write a stream byte by byte
        self.first_byte, self.next_token, self.slow_token = gates = [
            asyncio.Event()
            for _ in range(3)  # the last holds only requests of the user "slow"
        ]
        for gate in gates:
            gate.set()
        self.begun, self.aborted = asyncio.Semaphore(0), asyncio.Semaphore(0)  # signals
        self.bodies: list[bytes] = []
        self.num_running = self.max_running = 0
        self.last_answer = b""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._chat)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01
        )

    async def start(self) -> None:
        await self._runner.setup()
        await web.UnixSite(self._runner, self.path).start()

    async def stop(self) -> None:
        """The process is gone, and its socket file with it."""
        await self._runner.cleanup()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        self.begun.release()
        try:
            await self.first_byte.wait()
            return await self._answer(request, json.loads(body))
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.release()
            raise
        finally:
            self.num_running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.fault is Fault.BAD_REQUEST:
            return _error(400, "max_tokens is too large", "BadRequestError")
        if self.fault is Fault.DEAD:
            return _error(500, DEATH, "InternalServerError")
        if self.fault is Fault.RESET_BEFORE_ANSWER or (
            self.fault is Fault.RESET and not body.get("stream")
        ):
            return _reset(request)
        if body.get("stream"):
            return await self._stream(request, body)
        if request.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
            self.last_answer = _json({"object": "list", "model": self.model, "data": data})
            return web.Response(body=self.last_answer, content_type="application/json")
        reason = "abort" if self.fault is Fault.ABORT else "stop"
        choice = {"message": {"role": "assistant", "content": TEXT}, "finish_reason": reason}
        answer = self._head("chat.completion") | {
            "choices": [{"index": i} | choice for i in range(body.get("n") or 1)],
            "usage": {"completion_tokens": len(TOKENS)},
        }
        self.last_answer = _json(answer)
        return web.Response(body=self.last_answer, content_type="application/json")

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        num_choices = body.get("n") or 1
        self.last_answer = b""
        for position, delta in enumerate([None, *TOKENS]):
            if position:
                await (self.slow_token if body.get("user") == "slow" else self.next_token).wait()
            if position == 3 and self.fault:
                if self.fault is Fault.RESET:
                    return _reset(request)
                if self.fault in (Fault.ERROR_EVENT, Fault.DEATH_EVENT):
                    why = DEATH if self.fault is Fault.DEATH_EVENT else "the grammar is broken"
                    error = json.dumps({"error": {"message": why, "type": "x", "code": 500}})
                    await self._write(response, f"data: {error}\n\n".encode())
                    await self._write(response, b"data: [DONE]\n\n")
                    return response
                if self.fault is Fault.DONE_WITHOUT_FINISH:
                    break
            for choice in range(num_choices):
                piece = (
                    {"role": "assistant", "content": ""} if delta is None else {"content": delta}
                )
                await self._write(response, self._chunk(choice, piece, None))
        else:
            reason = "abort" if self.fault is Fault.ABORT else "stop"
            for choice in range(num_choices):
                await self._write(response, self._chunk(choice, {"content": ""}, reason))
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = self._head("chat.completion.chunk") | {"choices": [], "usage": {"t": 1}}
                await self._write(response, b"data: " + _json(usage) + b"\n\n")
        if self.fault is not Fault.END_WITHOUT_DONE:
            await self._write(response, b"data: [DONE]\n\n")
        return response

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        self.last_answer += data
        for piece in [bytes([byte]) for byte in data] if self.is_bytewise else [data]:
            await response.write(piece)
            await asyncio.sleep(0)  # so that the gateway reads each piece by itself

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return (
            b"data: "
            + _json(self._head("chat.completion.chunk") | {"choices": [choice]})
            + (b"\n\n")
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": self.model}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _error(status: int, message: str, kind: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.Response(
        status=status, body=_json({"error": error}), content_type="application/json"
    )


def _reset(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.abort()
    return web.Response()
