"""An engine that keeps vLLM's contract, and breaks it where a test says so."""

import asyncio
import json
import os
from contextlib import suppress
from enum import StrEnum
from typing import Any

from aiohttp import web

from tests.gateway.voices import VOICES, json_bytes

TOKENS = ["Grüß", "e aus ", "東京", " 🎬", ' "finish_reason":"stop" [DONE]\n\ndata: [DONE]']
TEXT = "".join(TOKENS)
METRICS = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 50.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:request_prefill_time_seconds Histogram of time spent in PREFILL phase.
# TYPE vllm:request_prefill_time_seconds histogram
vllm:request_prefill_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 1.0
vllm:request_prefill_time_seconds_bucket{engine="0",le="+Inf",model_name="m"} 1.0
vllm:request_prefill_time_seconds_count{engine="0",model_name="m"} 1.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="m"} 0.1
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 40.0
"""
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
    REFUSED = "refused"  # also 400, and in a stream as its route tells a refusal, or does not
    BROKEN_OFF = "broken_off"  # the connection, of one request: the engine lives
    DEAD = "dead"  # 500


# The ends of a stream that a dying engine makes, politely or not.
DYING = (
    Fault.DONE_WITHOUT_FINISH,
    Fault.DEATH_EVENT,
    Fault.RESET,
    Fault.END_WITHOUT_DONE,
    Fault.ABORT,
)
_IN_THE_MIDDLE = (
    Fault.DONE_WITHOUT_FINISH,
    Fault.DEATH_EVENT,
    Fault.ERROR_EVENT,
    Fault.RESET,
    Fault.BROKEN_OFF,
)
_DEADLY = (*DYING, Fault.RESET_BEFORE_ANSWER, Fault.DEAD)
REFUSAL = "max_tokens is too large"
# What the routes answer that generate nothing.
COUNTED = {
    "/v1/embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}],
    },
    "/v1/messages/count_tokens": {"input_tokens": 5},
    "/tokenize": {"count": 2, "max_model_len": 8192, "tokens": [1, 2], "token_strs": None},
    "/detokenize": {"prompt": "hi"},
}


class FakeEngine:
    """Serves on a Unix socket. Closing a gate holds every request there."""

    def __init__(self, path: str, model: str = "m") -> None:
        self.path, self.model = path, model
        self.fault: Fault | None = None
        self.tokens = TOKENS  # of each answer
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
        self.metrics, self.metrics_gate = METRICS, asyncio.Event()  # its own page
        self.metrics_gate.set()
        self.raw_answer: tuple[int, bytes] | None = None  # instead of an answer
        app = web.Application(client_max_size=2**26)
        for path in [*VOICES, *COUNTED]:
            app.router.add_post(path, self._post)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
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

    async def _metrics(self, _: web.Request) -> web.Response:
        await self.metrics_gate.wait()
        return web.Response(text=self.metrics)

    async def _post(self, request: web.Request) -> web.StreamResponse:
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
        is_stream = bool(body.get("stream"))
        if self.fault is Fault.BAD_REQUEST or (self.fault is Fault.REFUSED and not is_stream):
            return _error(400, REFUSAL, "BadRequestError")
        if self.fault is Fault.DEAD:
            return _error(500, DEATH, "InternalServerError")
        if self.fault is Fault.RESET_BEFORE_ANSWER or (
            self.fault is Fault.RESET and not body.get("stream")
        ):
            return _reset(request)
        if self.raw_answer:
            status, raw = self.raw_answer
            return web.Response(status=status, body=raw, content_type="application/json")
        if request.path in COUNTED:
            self.last_answer = json_bytes(COUNTED[request.path])
            return web.Response(body=self.last_answer, content_type="application/json")
        voice = VOICES[request.path](self.model, body)
        if body.get("stream"):
            return await self._stream(request, body, voice)
        self.last_answer = voice.plain(
            "".join(self.tokens), "abort" if self.fault is Fault.ABORT else "stop"
        )
        return web.Response(body=self.last_answer, content_type="application/json")

    async def _stream(
        self, request: web.Request, body: dict[str, Any], voice: Any
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self.last_answer = b""
        if self.fault is Fault.REFUSED:
            events, is_broken = voice.refusal(REFUSAL)
            await self._write_all(response, events)
            return _reset(request) if is_broken else response
        await self._write_all(response, voice.first())
        for position, token in enumerate(self.tokens, start=1):
            await (self.slow_token if body.get("user") == "slow" else self.next_token).wait()
            if position == 3 and self.fault in _IN_THE_MIDDLE:
                why = DEATH if self.fault is Fault.DEATH_EVENT else "the grammar is broken"
                events = (
                    voice.polite_death("".join(self.tokens[:2]))
                    if self.fault is Fault.DONE_WITHOUT_FINISH
                    else None
                    if self.fault in (Fault.RESET, Fault.BROKEN_OFF)
                    else voice.error(why)
                )
                if events is None:
                    return _reset(request)
                await self._write_all(response, events)
                return response
            await self._write_all(response, voice.token(token))
        await self._write_all(
            response,
            voice.last("".join(self.tokens), "abort" if self.fault is Fault.ABORT else "stop"),
        )
        if self.fault is not Fault.END_WITHOUT_DONE:
            await self._write_all(response, voice.done())
        return response

    async def _health(self, _: web.Request) -> web.Response:
        """503 once the core is dead, as vLLM's own."""
        return web.Response(status=503 if self.fault in _DEADLY else 200)

    async def _write_all(self, response: web.StreamResponse, events: list[bytes]) -> None:
        for event in events:
            await self._write(response, event)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        self.last_answer += data
        for piece in [bytes([byte]) for byte in data] if self.is_bytewise else [data]:
            await response.write(piece)
            await asyncio.sleep(0)  # so that the gateway reads each piece by itself


def _error(status: int, message: str, kind: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.Response(
        status=status, body=json_bytes({"error": error}), content_type="application/json"
    )


def _reset(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.abort()
    return web.Response()
