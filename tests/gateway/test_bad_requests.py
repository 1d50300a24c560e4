"""Bad input: refused before any engine sees it, in OpenAI's shape."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from tests.gateway.conftest import CHAT, A, Backend, error_of

HI = [{"role": "user", "content": "hi"}]
JSON = {"content-type": "application/json"}


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": A, "messages": HI} | fields).encode()


BAD_BODIES = {
    "empty": b"",
    "truncated": b'{"model": "qwen',
    "trailing comma": b'{"model": "m",}',
    "two documents": b"{}{}",
    "an array": b"[]",
    "a number": b"42",
    "null": b"null",
    "not utf-8": b'{"model": "\xff\xfe"}',
    "deeply nested": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a huge number": b'{"model":' + b"9" * 5000 + b"}",
    "half a character": chat(messages=[{"role": "user", "content": "a\ud800b"}]),
    "not a number": chat(temperature=float("nan")),
    "infinity": chat(top_p=float("inf")),
    "no model": json.dumps({"messages": HI}).encode(),
    "model a number": chat(model=1),
    "model empty": chat(model=""),
    "model a list": chat(model=[A]),
    "no messages": json.dumps({"model": A}).encode(),
    "messages empty": chat(messages=[]),
    "messages a string": chat(messages="hi"),
    "messages an object": chat(messages={"role": "user"}),
    "stream a string": chat(stream="maybe"),
    "stream a number": chat(stream=1),
    "n zero": chat(n=0),
    "n negative": chat(n=-1),
    "n a string": chat(n="2"),
    "n a fraction": chat(n=1.5),
    "n true": chat(n=True),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_bad_body_is_400(backend: Backend, body: bytes) -> None:
    """The engine never sees it, and a good request after it is answered."""
    engine = await backend.serving()
    async with backend.client.post(CHAT, data=body, headers=JSON) as response:
        assert response.status == 400
        assert error_of(await response.read())["type"] == "invalid_request_error"
    assert not engine.bodies
    assert (await backend.asking())[0] == 200


@pytest.mark.parametrize(
    "model", ["nope", "../../etc/passwd", "a/b", "x" * 100_000, 'x"} 1\nvllm_up{a="b']
)
async def test_an_unknown_model_is_404(backend: Backend, model: str) -> None:
    """Also while nothing serves: no switch is asked for."""
    async with backend.client.post(CHAT, data=chat(model=model), headers=JSON) as response:
        assert response.status == 404
        assert error_of(await response.read())["code"] == "model_not_found"
    assert all(not report.waiting for report in backend.switchboard.reports)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "*"])
async def test_another_media_type_is_415(backend: Backend, media_type: str) -> None:
    """So that no web page can post here without asking first."""
    headers = {"content-type": media_type}
    async with backend.client.post(CHAT, data=chat(), headers=headers) as response:
        assert response.status == 415
        assert error_of(await response.read())["code"] == "unsupported_media_type"


@pytest.mark.parametrize("limits", [{"max_body_bytes": 1000}])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_413(backend: Backend, is_chunked: bool) -> None:
    """Counted in bytes as received, whether or not a length was declared."""
    await backend.serving()

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100):
            yield body[at : at + 100]

    def post(body: bytes) -> Any:
        data = pieces(body) if is_chunked else body
        return backend.client.post(CHAT, data=data, headers=JSON)

    async with post(chat().ljust(1000)) as response:
        assert response.status == 200
    in_bytes = '{"model": "é'.encode() + "é".encode() * 500  # 1,012 bytes, 512 characters
    for too_large in (chat().ljust(1001), in_bytes, chat() * 20):
        async with post(too_large) as response:
            assert response.status == 413
            assert error_of(await response.read())["code"] == "request_too_large"


async def test_a_declared_length_over_the_limit_is_refused_at_once(backend: Backend) -> None:
    """Nothing is read for a client that announces more than is allowed."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, _ = await backend.raw(f"{head}Content-Length: 99999999999\r\n\r\n{{}}".encode())
    async with asyncio.timeout(60):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("limits", [{"request_timeout_s": 0.2}])
@pytest.mark.parametrize("sent", [b"", b'{"model": '])
async def test_a_body_that_does_not_come_in_time_is_408(backend: Backend, sent: bytes) -> None:
    """Nobody holds a request open for ever by not sending it."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, _ = await backend.raw(f"{head}Content-Length: 100\r\n\r\n".encode() + sent)
    async with asyncio.timeout(60):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await reader.readuntil(b'"request_timeout"')


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nope",
        "/v1/chat",
        "//admin/switch",
        "/sleep",
        "/collective_rpc",
        "/v1/%2e%2e/x",
        CHAT + "/",
    ],
)
async def test_an_unknown_route_is_404(backend: Backend, path: str) -> None:
    """In OpenAI's shape, and never a redirect."""
    for method in ("GET", "POST"):
        address = URL(f"http://127.0.0.1:{backend.port}{path}", encoded=True)
        request = backend.client.request(method, address, allow_redirects=False)
        async with request as response:
            assert response.status == 404
            assert error_of(await response.read())["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/models", "GET, HEAD"),
        ("GET", "/admin/switch", "POST"),
        ("PATCH", "/admin/lease", "DELETE, POST"),
    ],
)
async def test_a_wrong_method_is_405(
    backend: Backend, method: str, path: str, allowed: str
) -> None:
    """In OpenAI's shape, with all methods that there are."""
    async with backend.client.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == allowed
        assert error_of(await response.read())["code"] == "method_not_allowed"


async def test_an_error_of_our_own_is_500_without_a_trace(backend: Backend) -> None:
    """What went wrong here is logged, not told."""
    backend.switchboard.answer = ZeroDivisionError("secret at /etc/passwd")
    async with backend.client.get("/admin/status") as response:
        assert response.status == 500
        assert "secret" not in error_of(await response.read())["message"]


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", CHAT),
        ("POST", "/completions", "/v1/completions"),
        ("POST", "/responses", "/v1/responses"),
        ("POST", "/messages", "/v1/messages"),
        ("POST", "/messages/count_tokens", "/v1/messages/count_tokens"),
        ("POST", "/embeddings", "/v1/embeddings"),
        ("POST", "/v1/v1/chat/completions", CHAT),
        ("POST", "//v1//chat/completions/", CHAT),
        ("POST", "/v1/tokenize", "/tokenize"),
        ("GET", f"/models/{A}", f"/v1/models/{A}"),
        ("GET", "/v1/health/", "/health"),
    ],
)
async def test_an_address_beside_the_right_one_names_it(
    backend: Backend, method: str, path: str, meant: str
) -> None:
    """A base URL without `/v1`, or with one too many, is the commonest mistake of all."""
    address = URL(f"http://127.0.0.1:{backend.port}{path}", encoded=True)
    async with backend.client.request(method, address) as response:
        assert response.status == 404
        error = error_of(await response.read())
    assert error["message"] == f"There is no route {path}; did you mean {meant}?"


@pytest.mark.parametrize("path", ["/v1", "/v1/nowhere", "/nowhere", "/v1/" + "models/" * 30])
async def test_an_address_that_is_near_none_is_only_unknown(backend: Backend, path: str) -> None:
    async with backend.client.get(path) as response:
        assert response.status == 404
        assert "did you mean" not in error_of(await response.read())["message"]
