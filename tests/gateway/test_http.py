"""HTTP as clients speak it, through the real HAProxy, to the gateway as Serve's replica runs it."""

import json

import pytest
from pydantic import SecretStr

from deployments.settings import Settings
from serve_app.routes.auth import Guard
from tests.gateway.conftest import CHAT, MESSAGES, A, Backend, Front, error_of
from tests.gateway.proxied import Proxy
from tests.gateway.test_auth import app_of as app_of_gateway
from tests.raw import RawClient, ask, request

pytestmark = pytest.mark.timeout(150)

CLOSE = ("Connection", "close")
GETS = ["/", "/health", "/v1/models", f"/v1/models/{A}", "/metrics", "/admin/status", "/nowhere"]
STREAMS = ["/admin/events", "/admin/logs/gateway?follow=true"]


def ids_of(head: bytes) -> list[bytes]:
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    return [value for name, _, value in lines if name.lower() == b"x-request-id"]


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_a_body(backend: Backend, proxy: Proxy, path: str) -> None:
    """Wherever GET is: uptime monitors, `wget --spider`, `curl -I`."""
    await backend.serving()
    status, head, _ = await ask(proxy.port, *request(path, headers=[CLOSE]))
    status_of_head, bare, body = await ask(
        proxy.port, *request(path, method="HEAD", headers=[CLOSE])
    )
    assert (status_of_head, body) == (status, b"")
    names = [{line.partition(b":")[0] for line in h.split(b"\r\n")[1:]} for h in (head, bare)]
    assert names[0] == names[1]


@pytest.mark.parametrize("path", STREAMS)
async def test_head_of_a_stream_is_its_head(
    backend: Backend, front: Front, proxy: Proxy, settings: Settings, path: str
) -> None:
    """And the stream is over."""
    status, head, body = await ask(proxy.port, *request(path, method="HEAD", headers=[CLOSE]))
    assert (status, body) == (200, b"")
    assert b"text/event-stream" in head
    assert b"x-accel-buffering: no" in head.lower()


async def test_head_of_what_is_only_posted_is_not_allowed(proxy: Proxy) -> None:
    status, head, _ = await ask(proxy.port, *request(CHAT, method="HEAD", headers=[CLOSE]))
    assert status == 405
    assert b"allow: POST" in head


@pytest.mark.parametrize("name", ["good-1", "a" * 65, "a b", "a, b", "a\xff", ""])
async def test_a_request_has_one_name(proxy: Proxy, name: str) -> None:
    """The client's, where that is harmless."""
    head = request("/health", headers=[CLOSE, ("X-Request-Id", name)])
    status, answer, _ = await ask(proxy.port, *head)
    assert status == 200
    (given,) = ids_of(answer)
    assert (given == name.encode("latin-1")) == (name == "good-1")


async def test_two_names_are_none(proxy: Proxy) -> None:
    names = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
    _, answer, _ = await ask(proxy.port, *request("/health", headers=[CLOSE, *names]))
    (given,) = ids_of(answer)
    assert given not in (b"one", b"two")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("FOO", "/", 501), ("TRACE", "/", 501), ("OPTIONS", "*", 400), ("PUT", "/health", 405)],
)
async def test_what_is_not_known_is_refused_in_our_shape(
    proxy: Proxy, method: str, path: str, expected: int
) -> None:
    head = request(path, method=method, headers=[CLOSE])
    status, _, body = await ask(proxy.port, *head)
    assert status == expected
    error_of(body)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",  # the first bytes of TLS, as https:// sends them
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_what_haproxy_cannot_read_is_its_own_400(proxy: Proxy, sent: bytes) -> None:
    """And the connection is closed. Its text is HTML: no error page of ours is used for it."""
    async with await RawClient.connect(proxy.port) as client:
        await client.send(sent)
        answer = await client.all()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"text/html" in answer


async def test_an_older_client_has_an_answer_with_its_length(
    backend: Backend, proxy: Proxy
) -> None:
    engine = await backend.serving()
    asked = request(CHAT, {"model": A, "messages": MESSAGES}, version="1.0")
    status, head, body = await ask(proxy.port, *asked)
    assert (status, body) == (200, engine.last_answer)
    assert f"content-length: {len(body)}".encode() in head
    assert b"transfer-encoding" not in head


async def test_an_older_client_has_a_stream_as_it_comes(backend: Backend, proxy: Proxy) -> None:
    """In chunks, which nginx reads, and before the whole of it is there."""
    engine = await backend.serving()
    engine.next_token.clear()
    asked = request(CHAT, {"model": A, "messages": MESSAGES, "stream": True}, version="1.0")
    async with await RawClient.connect(proxy.port) as client:
        await client.send(*asked)
        assert b"transfer-encoding: chunked" in await client.until(b'"role":"assistant"')
        engine.next_token.set()
        assert (await client.all()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(("num_bytes", "expected"), [(20_000, 200), (40_000, 431), (60_000, 431)])
async def test_the_limit_of_headers_is_the_gateway_s(
    proxy: Proxy, num_bytes: int, expected: int
) -> None:
    """HAProxy's own would be 15 KB, and an HTML page."""
    head = request("/health", headers=[CLOSE, ("X-Long", "x" * num_bytes)])
    status, _, body = await ask(proxy.port, *head)
    assert status == expected
    if expected == 431:
        assert error_of(body)["code"] == "headers_too_large"


async def test_many_headers_are_no_problem(proxy: Proxy) -> None:
    """HAProxy's own limit is 101."""
    many = [(f"X-{number}", "y") for number in range(300)]
    assert (await ask(proxy.port, *request("/health", headers=[CLOSE, *many])))[0] == 200


async def test_nobody_steers_serve(backend: Backend, proxy: Proxy) -> None:
    """The header by which Serve cuts a stream without a word does not reach it."""
    engine = await backend.serving()
    steering = [("X-Request-Timeout-Seconds", "0.001"), ("X-Session-Id", "a\xff")]
    head = request(CHAT, {"model": A, "messages": MESSAGES}, headers=[CLOSE, *steering])
    status, _, body = await ask(proxy.port, *head)
    assert (status, json.loads(body)) == (200, json.loads(engine.last_answer))


@pytest.mark.parametrize("scheme", ["bearer", "x-api-key"])
async def test_a_key_may_have_any_letters(
    front: Front, backend: Backend, proxy: Proxy, settings: Settings, scheme: str
) -> None:
    """Clients send it as UTF-8."""
    key = "schlüssel-東京"
    keyed = settings.model_copy(update={"api_keys": (SecretStr(key),), "admin_keys": ()})
    guard = Guard.of(keyed)
    app_of_gateway(front).state.guard = guard
    sent = key.encode().decode("latin-1")
    header = ("X-Api-Key", sent) if scheme == "x-api-key" else ("Authorization", f"Bearer {sent}")
    assert (await ask(proxy.port, *request("/v1/models", headers=[CLOSE, header])))[0] == 200
    wrong = (header[0], header[1][:-1] + "\xff")
    assert (await ask(proxy.port, *request("/v1/models", headers=[CLOSE, wrong])))[0] == 401
