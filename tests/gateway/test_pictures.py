"""Pictures: looked at before an engine sees them, and never fetched from where they should not."""

import base64
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from PIL import Image
from yarl import URL

from serve_app.protocol.errors import InvalidImage
from serve_app.validation import images
from serve_app.validation.message_content import Picture
from tests.gateway.conftest import CHAT, A, Backend, error_of
from tests.gateway.fake_engine import FakeEngine

VL = "qwen-vl"


def encoded(kind: str = "PNG", size: tuple[int, int] = (28, 28)) -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(raw, kind)
    return raw.getvalue()


def address(raw: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(raw).decode()}"


def bomb(side: int = 30_000) -> bytes:
    """A few bytes that call themselves a picture of 900 million pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", b"") + part(b"IEND", b"")


def see(*urls: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": u}} for u in urls]}
    ]


async def post(
    backend: Backend, messages: Any, model: str = VL, path: str = CHAT, **fields: Any
) -> tuple[int, bytes]:
    body = {"model": model, "messages": messages} | fields
    async with backend.client.post(path, json=body) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_pictures_pass_as_they_came(backend: Backend, kind: str) -> None:
    """Two of them, byte for byte; also where the media type is wrong, as clients often have it."""
    engine = await backend.serving(VL)
    url = address(encoded(kind), "image/jpeg")
    status, raw = await post(backend, see(url, url))
    assert status == 200, raw
    assert json.loads(engine.bodies[0])["messages"] == see(url, url)


BAD_ADDRESSES = {
    "a page": "https://example.com/a.png",
    "metadata service": "http://169.254.169.254/latest/meta-data/",
    "loopback": "http://127.0.0.1:1/a.png",
    "a file": "file:///etc/passwd",
    "a path": "/etc/passwd",
    "ftp": "ftp://example.com/a.png",
    "nothing": "",
    "a number": 1,
    "no base64": "data:image/png,abc",
    "wrong base64": "data:image/png;base64,@@@@",
    "svg": address(b"<svg/>", "image/svg+xml"),
    "gif": address(encoded("GIF"), "image/gif"),
    "gif that says png": address(encoded("GIF")),
    "text": address(b"hello"),
    "cut off": address(encoded()[:20]),
    "a bomb": address(bomb()),
    "video": address(encoded(), "video/jpeg"),
    "a line": address(encoded(size=(4000, 2))),
}


@pytest.mark.parametrize("url", BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
async def test_a_bad_picture_is_400_and_no_engine_sees_it(backend: Backend, url: Any) -> None:
    """On chat, responses and messages alike; what it is refused for is the picture."""
    engine = await backend.serving(VL)
    status, raw = await post(backend, see(url))
    assert status == 400, raw
    assert error_of(raw)["param"].startswith("messages[0].content[0]")
    part = {"type": "input_image", "image_url": url}
    body = {"model": VL, "input": [{"role": "user", "content": [part]}]}
    async with backend.client.post("/v1/responses", json=body) as response:
        assert response.status == 400
    source = {"type": "url", "url": url}
    if isinstance(url, str) and url.startswith("data:") and ";base64," in url:
        media_type, _, data = url.removeprefix("data:").partition(";base64,")
        source = {"type": "base64", "media_type": media_type, "data": data}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    for block in (message, in_tool_result(message)):
        status, raw = await post(backend, [block], path="/v1/messages", max_tokens=1)
        assert status == 400, raw
    assert not engine.bodies


def in_tool_result(message: dict[str, Any]) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": "t", "content": message["content"]}
    return {"role": "user", "content": [block]}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1/v.mp4"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "prompt_embeds", "data": "AAAA"},
        {"type": "file", "file": {"file_id": "x"}},
        {"image_url": {"url": "http://127.0.0.1/a.png"}},
        {"type": "image_url", "image_url": address(encoded())},
        {"type": ["text"], "text": "x"},
        "text",
        7,
    ],
)
async def test_another_kind_of_content_is_400(backend: Backend, part: Any) -> None:
    """Also hidden in a part that says it is text, where vLLM would look for it."""
    engine = await backend.serving(VL)
    status, raw = await post(backend, [{"role": "user", "content": [part]}])
    assert status == 400, raw
    assert "messages[0].content[0]" in error_of(raw)["message"]
    assert not engine.bodies


@pytest.mark.parametrize(
    ("part", "ignored"),
    [
        ({"type": "text", "text": "x", "image_url": "http://127.0.0.1/a.png"}, "image_url"),
        ({"type": "image_url", "image_url": {"url": address(encoded())}, "uuid": "1"}, "uuid"),
    ],
)
async def test_what_hides_in_a_part_is_left_out(
    backend: Backend, part: dict[str, Any], ignored: str
) -> None:
    """vLLM would look there for pictures of its own kinds; the client is told of what was left."""
    engine = await backend.serving(VL)
    body = {"model": VL, "messages": [{"role": "user", "content": [part]}]}
    async with backend.client.post(CHAT, json=body) as response:
        assert response.status == 200
        assert response.headers["X-Ignored-Fields"] == f"messages[].content[].{ignored}"
    (sent,) = json.loads(engine.bodies[0])["messages"][0]["content"]
    assert ignored not in set(sent) - {part["type"]}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "content": [{"type": "input_image", "image_url": "http://x/"}]},
        {"type": "function_call_output", "output": [{"type": "input_file", "file_url": "x"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "file_id": "x"}]},
        {"type": "file_search_call", "id": "x"},
    ],
)
async def test_another_kind_of_item_is_400(backend: Backend, item: Any) -> None:
    """An item of a conversation is of its kind, and has that kind's fields only."""
    engine = await backend.serving(VL)
    async with backend.client.post(
        "/v1/responses", json={"model": VL, "input": [item]}
    ) as response:
        assert response.status == 400
        assert "input[0]" in error_of(await response.read())["message"]
    assert not engine.bodies


async def test_what_a_client_sends_back_of_responses_is_taken(backend: Backend) -> None:
    """A whole turn with a tool, as the openai package writes its own objects."""
    await backend.serving(VL)
    call = {"type": "function_call", "id": "1", "call_id": "c", "name": "f", "arguments": "{}"}
    text = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": None}
    turn = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "r", "summary": [], "content": None, "status": None},
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        },
        call | {"status": "completed", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
    ]
    async with backend.client.post("/v1/responses", json={"model": VL, "input": turn}) as response:
        assert response.status == 200, await response.text()


async def test_a_model_that_does_not_see_says_so(backend: Backend) -> None:
    """Before anybody switches to it."""
    status, raw = await post(backend, see(address(encoded())), model=A)
    assert status == 400
    assert "does not accept pictures" in error_of(raw)["message"]
    assert all(not report.waiting for report in backend.switchboard.reports)


async def test_more_pictures_than_the_model_takes_is_400(backend: Backend) -> None:
    """Counted over the whole conversation."""
    await backend.serving(VL)
    url = address(encoded())
    status, raw = await post(backend, see(url) + see(url) + see(url))
    assert status == 400
    assert "accepts at most 2" in error_of(raw)["message"]


@pytest.mark.parametrize("limits", [{"max_image_bytes": 1000, "max_image_pixels": 10_000}])
async def test_the_limits_of_a_picture_are_the_settings(backend: Backend) -> None:
    """Its bytes, and its pixels as its head tells them."""
    await backend.serving(VL)
    assert (await post(backend, see(address(encoded(size=(100, 100))))))[0] == 200
    status, raw = await post(backend, see(address(encoded(size=(101, 100)))))
    assert (status, "10100" in raw.decode() or "101 x 100" in raw.decode()) == (400, True)
    status, raw = await post(backend, see(address(encoded() + b"x" * 1000)))
    assert (status, "more than 1000 bytes" in raw.decode()) == (400, True)


@dataclass
class Host:
    """A web server with pictures, and what it was asked for."""

    url: URL
    asked: list[str] = field(default_factory=list)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    found = Host(URL())

    async def serve(request: web.Request) -> web.Response:
        found.asked.append(request.path)
        match request.path:
            case "/a.png":
                return web.Response(body=encoded(), content_type="text/html")
            case "/large":
                return web.Response(body=b"x" * 2_000_000)
            case "/inside":
                raise web.HTTPFound("http://127.0.0.1:1/secret")
            case "/file":
                raise web.HTTPFound("file:///etc/passwd")
            case "/hop":
                raise web.HTTPFound("/a.png")
            case "/round":
                raise web.HTTPFound("/round")
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = URL.build(scheme="http", host="localhost", port=runner.addresses[0][1])
    yield found
    await runner.cleanup()


LISTED = {"image_hosts": ["localhost"], "max_image_bytes": 1_000_000, "image_fetch_timeout_s": 2}


@pytest.mark.parametrize("limits", [LISTED])
async def test_a_picture_of_a_listed_host_is_sent_on_as_data(
    backend: Backend, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched by the gateway, over a redirect within the list; the engine gets the bytes."""
    monkeypatch.setattr(
        "serve_app.validation.images.is_public", lambda _: True
    )  # as if it were elsewhere
    engine: FakeEngine = await backend.serving(VL)
    for path in ("/a.png", "/hop"):
        status, raw = await post(backend, see(str(host.url / path[1:])))
        assert status == 200, raw
        assert json.loads(engine.bodies[-1])["messages"] == see(address(encoded()))
    source = {"type": "url", "url": str(host.url / "a.png")}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    status, raw = await post(backend, [message], path="/v1/messages", max_tokens=1)
    assert status == 200, raw
    sent = json.loads(engine.bodies[-1])["messages"][0]["content"][0]["source"]
    assert sent["type"] == "base64"
    assert base64.b64decode(sent["data"]) == encoded()


@pytest.mark.parametrize("limits", [LISTED])
@pytest.mark.parametrize("path", ["inside", "file", "round", "large", "nothing"])
async def test_a_listed_host_leads_nowhere_else(
    backend: Backend, host: Host, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Not inside, not in circles, not past the limit of bytes."""
    monkeypatch.setattr("serve_app.validation.images.is_public", lambda _: True)
    engine = await backend.serving(VL)
    status, raw = await post(backend, see(str(host.url / path)))
    assert status == 400
    error_of(raw)
    assert not engine.bodies


@pytest.mark.parametrize("limits", [LISTED])
async def test_a_listed_name_of_a_private_address_is_not_asked(
    backend: Backend, host: Host
) -> None:
    """A name that leads to this machine is refused before a connection is made."""
    await backend.serving(VL)
    status, raw = await post(backend, see(str(host.url / "a.png")))
    assert status == 400
    error_of(raw)
    assert not host.asked


async def test_an_unlisted_host_is_not_asked(backend: Backend, host: Host) -> None:
    """The list is empty unless somebody fills it."""
    await backend.serving(VL)
    assert (await post(backend, see(str(host.url / "a.png"))))[0] == 400
    assert not host.asked


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104  never bound
        ("100.64.0.1", False),
        ("nonsense", False),
    ],
)
def test_which_addresses_are_public(ip: str, public: bool) -> None:
    """The internet's, and nobody's own."""
    assert images.is_public(ip) is public


async def test_an_ip_address_on_the_list_is_still_not_inside(settings: Any) -> None:
    """A number is seen by no resolver; it is looked at by itself."""
    limits = settings.limits.model_copy(update={"image_hosts": ["127.0.0.1"]})
    picture = Picture("messages[0]", "http://127.0.0.1:1/a.png", lambda _: None)
    with pytest.raises(InvalidImage):
        await images.prepare_pictures([picture], limits)
