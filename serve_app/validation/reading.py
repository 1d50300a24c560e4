"""Reads a request's body, within its limits, as one JSON object."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from serve_app.protocol.errors import (
    BodyTooLarge,
    InvalidRequest,
    UnknownModel,
    UnsupportedMediaType,
    UploadTimeout,
)


async def read_body(request: Request, max_bytes: int, deadline: float) -> bytes:
    """The body as received, which claims to be JSON. `deadline`: in the event loop's time.

    Raises:
        BodyTooLarge, UnsupportedMediaType, UploadTimeout, InvalidRequest
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"The body's Content-Encoding is `{encoding[:40]}`; only identity is supported."
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("The body must be sent as application/json.")
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_body(request, max_bytes)
    except TimeoutError:
        raise UploadTimeout("The request body was not received in time.") from None


def decode(body: bytes, max_values: int) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidRequest.

    A value takes up to 72 bytes of memory and some 0.1 µs, however short it is written, so their
    number is bounded before any is made. Every value but the first comes after a comma or a
    bracket; those in texts count too, of which no prompt has so many.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > max_values:
        raise InvalidRequest(f"The body holds more than {max_values} values.")
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("The body is not valid JSON.") from exc
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def wanted_model(value: dict[str, Any], known: Collection[str]) -> str:
    """The `model` of a request. Raises InvalidRequest, UnknownModel."""
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest(
            "Missing required parameter: 'model'; it must be the name of a model.", "model"
        )
    check_known(model, known)
    return model


def check_known(model: str, known: Collection[str]) -> None:
    """Raises UnknownModel."""
    if model not in known:
        raise UnknownModel(
            f"The model `{model[:100]}` does not exist. Available models: {', '.join(known)}.",
            "model",
        )


def invalid_field(problem: Mapping[str, Any]) -> InvalidRequest:
    """One of pydantic's errors as ours; names the field, not where it was looked for."""
    field = ".".join(str(part) for part in problem["loc"] if part not in ("query", "path"))[:100]
    return InvalidRequest(f"{field}: {problem['msg']}"[:300], field)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:  # refused without waiting for it
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
            chunks.append(chunk)
    except ClientDisconnect as exc:
        raise InvalidRequest("The request body ended before its declared length.") from exc
    return b"".join(chunks)
