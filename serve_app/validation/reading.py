"""Reads the body of a request, within the limits, as one JSON object."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from deployments.settings.names import ModelNames, NamedModel
from serve_app.protocol.errors import (
    BodyTooLarge,
    InvalidRequest,
    UnknownModel,
    UnsupportedMediaType,
    UploadTimeout,
)


async def read_body(request: Request, max_bytes: int, deadline: float) -> bytes:
    """Return the body as received; its headers say that it is JSON.

    `deadline`: in the event loop's time.

    Raises:
        BodyTooLarge, UnsupportedMediaType, UploadTimeout, InvalidRequest
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Unsupported Content-Encoding: `{encoding[:40]}`; send the body without an encoding."
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            "Unsupported Content-Type; the body must be sent as `application/json`."
        )
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_body(request, max_bytes)
    except TimeoutError:
        raise UploadTimeout("The request body was not received in time.") from None


def decode(body: bytes, max_values: int) -> dict[str, Any]:
    """Return the JSON object in a body. Raises InvalidRequest.

    A value takes up to 72 bytes of memory and about 0.1 µs, however short its text is, so the
    number of values is bounded before the body is decoded. Each value but the first follows a comma
    or a bracket. Commas and brackets inside strings count too, but no real prompt has so many.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > max_values:
        raise InvalidRequest(
            f"The body has more than {max_values} values (commas and brackets are counted)."
        )
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("The body is not valid JSON.") from exc
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def wanted_model(value: dict[str, Any], names: ModelNames) -> NamedModel:
    """Return the `model` of a request. Raises InvalidRequest, UnknownModel."""
    asked = value.get("model")
    if not isinstance(asked, str) or not asked:
        raise InvalidRequest(
            "Missing required parameter: 'model'; it must be the name of a model.", "model"
        )
    return find_model(asked, names)


def find_model(asked: str, names: ModelNames) -> NamedModel:
    """Return the model that a name means. Raises UnknownModel."""
    found = names.find(asked)
    if found is None:
        known = ", ".join(named.asked for named in names.listed())
        raise UnknownModel(
            f"The model `{asked[:100]}` does not exist. Available models: {known}.", "model"
        )
    return found


def invalid_field(problem: Mapping[str, Any]) -> InvalidRequest:
    """Turn pydantic's error into ours; the name of the field is without `query` or `path`."""
    field = ".".join(str(part) for part in problem["loc"] if part not in ("query", "path"))[:100]
    message = str(problem["msg"])
    return InvalidRequest(f"Invalid '{field}': {message[0].lower()}{message[1:]}."[:300], field)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if (
        declared.isdecimal() and int(declared) > max_bytes
    ):  # refuse it without waiting for the bytes
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
