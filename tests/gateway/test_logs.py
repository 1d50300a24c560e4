"""The access log, the name of each request, and logs over HTTP."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from deployments.host.logs import JsonLines
from deployments.settings import Settings
from serve_app.telemetry.context import RequestFields
from tests.gateway.conftest import A, B, Backend, error_of, until
from tests.gateway.fake_engine import TEXT, Fault
from tests.gateway.voices import USAGE

SECRET = "the plot of the third film"  # a prompt


class Lines(logging.Handler):
    """What would be in gateway.log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.addFilter(RequestFields())
        self.raw: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.raw.append(self.format(record))

    async def requests(self, number: int = 1) -> list[dict[str, Any]]:
        """The access lines, once there are so many: they come after the answer's last byte."""
        await until(lambda: sum('"event": "request"' in line for line in self.raw) >= number)
        lines = [json.loads(line) for line in self.raw]
        return [line for line in lines if line["event"] == "request"]


@pytest.fixture
async def log() -> AsyncIterator[Lines]:
    ours, lines = logging.getLogger("llm_backend"), Lines()
    level = ours.level
    ours.addHandler(lines)
    ours.setLevel(logging.INFO)
    yield lines
    ours.removeHandler(lines)
    ours.setLevel(level)


@pytest.fixture(scope="session")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With a home that has logs."""
    home = tmp_path_factory.mktemp("home")
    (home / "logs").mkdir()
    (home / "logs" / "gateway.log").write_text('{"event": "one"}\n{"event": "two"}\n')
    (home / "logs" / "qwen-vl.log").write_text("INFO ready\n")
    (home / "secret.log").write_text("secret\n")
    return settings.model_copy(update={"home": home})


async def test_a_request_leaves_one_line_with_what_became_of_it(
    backend: Backend, log: Lines
) -> None:
    """Under the id that its answer names; without prompt or answer."""
    await backend.serving(A, epoch=4)
    async with await backend.chat(messages=[{"role": "user", "content": SECRET}]) as response:
        await response.read()
    (line,) = await log.requests()
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])
    assert line["request_id"] == response.headers["X-Request-Id"]
    assert line["queue_ms"] >= 0
    tokens = {key: line[key] for key in ("prompt_tokens", "completion_tokens")}
    assert tokens.items() <= USAGE.items()
    assert line["total_ms"] > 0
    kept = ("method", "route", "status", "outcome", "model", "epoch")
    assert [line[key] for key in kept] == ["POST", "/v1/chat/completions", 200, "complete", A, 4]
    assert SECRET not in "".join(log.raw)
    assert TEXT not in "".join(log.raw)


@pytest.mark.parametrize(
    ("sent", "is_taken"),
    [("shot-12.b_7", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ('"}', False)],
)
async def test_a_harmless_id_of_the_clients_own_is_kept(
    backend: Backend, sent: str, is_taken: bool
) -> None:
    async with backend.client.get("/health", headers={"X-Request-Id": sent}) as response:
        assert (response.headers["X-Request-Id"] == sent) == is_taken
        assert len(response.headers.getall("X-Request-Id")) == 1


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/no-such", "/admin/switch", "/health"])
async def test_every_answer_has_an_id(backend: Backend, path: str) -> None:
    async with backend.client.get(path) as response:
        assert response.headers["X-Request-Id"]


async def test_an_unexpected_error_has_an_id_too(backend: Backend, log: Lines) -> None:
    """And its log line has the same; its text, which might quote the request, is left out."""
    backend.switchboard.answer = RuntimeError(SECRET)
    async with backend.client.get("/admin/status") as response:
        assert response.status == 500
        await response.read()
    (line,) = await log.requests()
    assert (line["status"], line["outcome"]) == (500, "error")
    (error,) = (
        json.loads(raw) for raw in log.raw if '"an unexpected error ended a request"' in raw
    )
    assert error["request_id"] == line["request_id"] == response.headers["X-Request-Id"]
    assert SECRET not in "".join(log.raw)


async def refused(backend: Backend) -> None:
    async with await backend.chat(model="no-such-model-" + SECRET) as response:
        await response.read()


async def broken_stream(backend: Backend) -> None:
    engine = await backend.serving()
    engine.fault = Fault.RESET
    await backend.streaming()


async def left_while_waiting(backend: Backend) -> None:
    asking = backend.asking(model=B)
    await until(lambda: backend.admission.num_queued)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await backend.idle()


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        (refused, {"status": 404, "outcome": "error", "error_code": "model_not_found"}),
        (broken_stream, {"status": 200, "outcome": "error", "error_code": "engine_restarting"}),
        (left_while_waiting, {"status": None, "outcome": "left", "model": B}),
    ],
)
async def test_the_line_tells_how_a_request_ended(
    backend: Backend, log: Lines, do: Callable[[Backend], Any], expected: dict[str, Any]
) -> None:
    """A stream that began well too."""
    await do(backend)
    (line,) = await log.requests()
    assert {key: line[key] for key in expected} == expected


async def test_a_log_line_holds_nothing_that_the_client_made_up(
    backend: Backend, log: Lines
) -> None:
    """No path, query, header or method, whatever they hold."""
    for head in (b"GET /a%0Ab?key=" + SECRET.replace(" ", "+").encode(), b"PROPFIND /secret"):
        reader, _ = await backend.raw(head + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
    for line in await log.requests(2):
        assert (line["route"], line["outcome"]) == ("unknown", "error")
        assert "secret" not in json.dumps(line)
        assert "plot" not in json.dumps(line)


async def test_healthy_looks_leave_no_line(backend: Backend, log: Lines) -> None:
    """Whoever watches asks every few seconds, and would bury the rest."""
    for path in ("/health", "/models"):
        async with backend.client.get(path) as response:
            await response.read()
    assert [line["route"] for line in await log.requests()] == ["/models"]


async def test_the_last_lines_come_as_text(backend: Backend) -> None:
    async with backend.client.get("/admin/logs/gateway?lines=1") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        assert await response.text() == '{"event": "two"}\n'


async def test_all_logs_come_with_their_names(backend: Backend) -> None:
    async with backend.client.get("/admin/logs/all?lines=1") as response:
        assert await response.text() == 'gateway | {"event": "two"}\nqwen-vl | INFO ready\n'


@pytest.mark.parametrize("name", ["secret", "..%2Fsecret", "%2e%2e/secret", "gateway.log", "ALL"])
async def test_only_known_logs_are_read(backend: Backend, name: str) -> None:
    async with backend.client.get(f"/admin/logs/{name}") as response:
        assert response.status == 404
        error_of(await response.read())


@pytest.mark.parametrize("query", ["lines=-1", "lines=5001", "lines=x", "follow=maybe"])
async def test_odd_wishes_are_refused(backend: Backend, query: str) -> None:
    async with backend.client.get(f"/admin/logs/gateway?{query}") as response:
        assert response.status == 400
        error_of(await response.read())


async def test_a_reader_that_follows_gets_what_is_added(
    backend: Backend, settings: Settings
) -> None:
    """First the last lines, then the new ones, as events of their service."""
    path = settings.home / "logs" / "switchboard.log"
    path.write_text("old\n")
    async with backend.client.get("/admin/logs/switchboard?follow=true&lines=1") as response:
        assert response.content_type == "text/event-stream"
        async with asyncio.timeout(60):
            assert await response.content.readuntil(b"\n\n") == b"event: switchboard\ndata: old\n\n"
            with path.open("a") as file:
                file.write("new\n")
            assert await response.content.readuntil(b"\n\n") == b"event: switchboard\ndata: new\n\n"
    path.unlink()
