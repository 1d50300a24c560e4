"""Tests the telemetry middleware around applications that answer as a test defines."""

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.settings import AppArgs, load_settings
from serve_app.telemetry.context import request_context
from serve_app.telemetry.metrics import GatewayMetrics
from serve_app.telemetry.middleware import TelemetryMiddleware

A = "qwen-14b"
REQUEST = {"type": "http", "method": "POST", "headers": []}
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"


@pytest.fixture
def metrics() -> GatewayMetrics:
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    return GatewayMetrics(settings)


async def answer(
    metrics: GatewayMetrics,
    *pieces: bytes,
    kind: str = JSON,
    model: str | None = A,
    **headers: str,
) -> list[Message]:
    """Send an answer of these pieces through the middleware; return the messages that leave it."""
    passed: list[Message] = []
    named = {"content-type": kind} | {k.replace("_", "-"): v for k, v in headers.items()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request_context().model = model
        encoded = [(k.encode(), v.encode()) for k, v in named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        for number, piece in enumerate(pieces, 1):
            more = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def send(message: Message) -> None:
        passed.append(message)

    await TelemetryMiddleware(app, metrics, is_behind_serve=True)(dict(REQUEST), _nothing, send)
    assert [m["body"] for m in passed[1:]] == list(pieces)
    return passed


async def _nothing() -> Message:
    raise AssertionError("these applications do not read the request")


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


async def test_a_cache_hit_counts_no_generated_tokens(metrics: GatewayMetrics) -> None:
    """It counts as a hit, and as an avoided switch if `X-Cache` says so; its usage is old."""
    body = b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}'
    await answer(metrics, body, model=None, x_model=A, x_cache="hit; switch=avoided")
    await answer(metrics, body, model=None, x_model=A, x_cache="hit")
    await answer(metrics, body, x_model=A, x_cache="miss")
    await answer(metrics, body, model=None, x_model=A, x_cache="shared")
    await answer(metrics, b"{}", x_model=A, x_cache="a word of tomorrow")
    assert value(metrics, "llm_backend_cache_lookups_total", model=A, result="hit") == 2
    assert value(metrics, "llm_backend_cache_lookups_total", model=A, result="miss") == 1
    assert value(metrics, "llm_backend_cache_lookups_total", model=A, result="shared") == 1
    assert value(metrics, "llm_backend_cache_lookups_total", model=A, result="other") == 1
    assert value(metrics, "llm_backend_switches_avoided_total", model=A) == 1
    assert value(metrics, "llm_backend_generated_tokens_total", model=A) == 3
    await answer(metrics, b"data: x\n\n", b"data: [DONE]\n\n", kind=EVENTS, x_cache="hit")
    assert value(metrics, "llm_backend_time_to_first_token_seconds_count", model=A) == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_usage_is_found_however_the_stream_is_cut(metrics: GatewayMetrics, cut: int) -> None:
    """Also under the names of messages and responses; text that looks like usage is ignored."""
    end = b'data: {"usage":{"input_tokens":11,"output_tokens":4}}\n\ndata: [DONE]\n\n'
    text = b'data: {"content":"\\"usage\\":{\\"output_tokens\\":99}"}\n\n'
    await answer(metrics, text, text, end[:cut], end[cut:], kind=EVENTS)
    assert value(metrics, "llm_backend_prompt_tokens_total", model=A) == 11
    assert value(metrics, "llm_backend_generated_tokens_total", model=A) == 4


def test_a_target_with_a_task_counts_for_its_model(metrics: GatewayMetrics) -> None:
    """An unknown name gets no series of its own."""
    assert metrics.model_of("qwen-vl:embed") == "qwen-vl"
    assert metrics.model_of("gpt-5") == "unknown"


async def test_an_application_that_fails_is_counted(metrics: GatewayMetrics) -> None:
    """Also if it sends no answer; the exception propagates."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        raise AssertionError(message)

    with pytest.raises(ZeroDivisionError):
        await TelemetryMiddleware(broken, metrics, is_behind_serve=True)(
            dict(REQUEST), _nothing, send
        )
    labels = {"route": "unmatched", "model": "none", "status": "5xx", "outcome": "error"}
    assert value(metrics, "llm_backend_requests_total", **labels) == 1


async def test_the_context_of_one_request_does_not_reach_the_next(metrics: GatewayMetrics) -> None:
    """Both run in the same task, like two requests on one connection."""
    await answer(metrics, b"{}", model=A)
    await answer(metrics, b"{}", model=None)
    labels = {"route": "unmatched", "status": "2xx", "outcome": "complete"}
    assert value(metrics, "llm_backend_requests_total", model=A, **labels) == 1
    assert value(metrics, "llm_backend_requests_total", model="none", **labels) == 1
