"""Checks pictures before an engine decodes them, and fetches them from trusted hosts."""

import asyncio
import base64
import binascii
import io
import ipaddress
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from PIL import Image
from yarl import URL

from deployments.settings import Limits
from serve_app.protocol.errors import InvalidImage
from serve_app.validation.message_content import Picture

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp")
_MAX_REDIRECTS = 3
_MAX_ASPECT = 200  # the ratio of the sides from which Qwen2.5-VL's processor refuses a picture
Image.MAX_IMAGE_PIXELS = None  # we check the pixels ourselves; Pillow would only warn


async def prepare_pictures(pictures: list[Picture], limits: Limits) -> bool:
    """Check all pictures; fetch those on trusted hosts and put their bytes into the request.

    Returns whether the request changed.

    Raises:
        InvalidImage: names the picture, and why the gateway refuses it.
    """
    has_changed = False
    for picture in pictures:
        address = picture.address
        if address[:5].lower() != "data:":
            address = await _fetch(picture, limits)
            picture.replace(address)
            has_changed = True
        await asyncio.to_thread(_check, address, picture.param, limits)
    return has_changed


def _check(address: str, param: str, limits: Limits) -> None:
    head, comma, data = address[5:].partition(",")
    media_type, *options = head.lower().split(";")
    if not comma or options[-1:] != ["base64"] or media_type not in _MEDIA_TYPES:
        raise InvalidImage(
            f"Invalid '{param}': a data URL must start with `data:image/png;base64,` "
            "(or `image/jpeg`, `image/webp`).",
            param,
        )
    if len(data) > limits.max_image_bytes * 4 // 3 + 4:
        raise _too_many_bytes(param, limits)
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"Invalid '{param}': the picture is not valid base64.", param) from None
    _check_bytes(raw, param, limits)


def _check_bytes(raw: bytes, param: str, limits: Limits) -> str:
    """Return the media type of a picture, from its header; no pixel is decoded.

    Raises:
        InvalidImage: too many bytes or pixels, too narrow, or not a picture.
    """
    if len(raw) > limits.max_image_bytes:
        raise _too_many_bytes(param, limits)
    try:
        with Image.open(io.BytesIO(raw), formats=("PNG", "JPEG", "WEBP")) as image:
            (width, height), kind = image.size, image.format
    except Exception as exc:  # Pillow's plug-ins can raise anything
        raise InvalidImage(
            f"Invalid '{param}': it is not a PNG, JPEG or WebP picture.", param
        ) from exc
    if width * height > limits.max_image_pixels:
        raise InvalidImage(
            f"Invalid '{param}': the picture has {width} x {height} pixels; at most "
            f"{limits.max_image_pixels} pixels are allowed.",
            param,
        )
    if max(width, height) >= _MAX_ASPECT * min(width, height):
        raise InvalidImage(
            f"Invalid '{param}': the picture is too narrow ({width} x {height} pixels); the longer "
            f"side must be less than {_MAX_ASPECT} times the shorter.",
            param,
        )
    return _FORMATS[kind or ""]


def _too_many_bytes(param: str, limits: Limits) -> InvalidImage:
    return InvalidImage(
        f"Invalid '{param}': the picture has more than {limits.max_image_bytes} bytes.", param
    )


class _PublicResolver(AbstractResolver):
    """Resolves names to public addresses only: a trusted name must not lead into this network."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [entry for entry in found if is_public(entry["host"])]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


def is_public(address: str) -> bool:
    """Whether an IP address is on the internet, not on this machine or in a private network."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False


def check_address(url: URL, param: str, limits: Limits) -> None:
    """Check that this URL may be fetched. Raises InvalidImage."""
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidImage(f"Invalid '{param}': a picture must be sent as a data URL.", param)
    if url.host.lower().rstrip(".") not in limits.image_hosts:
        raise InvalidImage(
            f"Invalid '{param}': pictures are not fetched from this host; send the picture as a "
            "data URL.",
            param,
        )


async def _fetch(picture: Picture, limits: Limits) -> str:
    """Fetch the picture and return it as a data URL. Raises InvalidImage."""
    try:
        url = URL(picture.address)
    except ValueError:
        raise InvalidImage(
            f"Invalid '{picture.param}': it is not a valid URL.", picture.param
        ) from None
    check_address(url, picture.param, limits)
    try:
        async with (
            asyncio.timeout(limits.image_fetch_timeout_s),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=_PublicResolver()), trust_env=False
            ) as session,
        ):
            raw = await _get(session, url, picture.param, limits)
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise _not_fetched(picture.param) from exc
    media_type = await asyncio.to_thread(_check_bytes, raw, picture.param, limits)
    return f"data:{media_type};base64,{base64.b64encode(raw).decode()}"


async def _get(session: Any, url: URL, param: str, limits: Limits) -> bytes:
    """Return the bytes at `url`; follow redirects only to URLs that may be fetched too."""
    for _ in range(_MAX_REDIRECTS + 1):
        check_address(url, param, limits)
        if _has_ip_host(url) and not is_public(url.host or ""):
            raise _not_fetched(param)
        async with session.get(url, allow_redirects=False) as response:
            if response.status in (301, 302, 303, 307, 308):
                url = url.join(URL(response.headers.get("location", "")))
                continue
            if response.status != 200:
                break
            raw: bytes = await response.content.read(limits.max_image_bytes + 1)
            while len(raw) <= limits.max_image_bytes:
                more = await response.content.read(limits.max_image_bytes + 1 - len(raw))
                if not more:
                    return raw
                raw += more
            raise _too_many_bytes(param, limits)
    raise _not_fetched(param)


def _not_fetched(param: str) -> InvalidImage:
    return InvalidImage(f"Invalid '{param}': the picture could not be fetched.", param)


def _has_ip_host(url: URL) -> bool:
    """Whether the host is an IP address, which the resolver never gets to check."""
    try:
        ipaddress.ip_address(url.host or "")
    except ValueError:
        return False
    return True
