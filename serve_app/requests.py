"""What the gateway itself checks of a request; the rest is the engine's."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from serve_app.errors import BodyTooLarge, InvalidRequest, UnknownModel, UnsupportedMediaType


class SwitchRequest(BaseModel):
    """The body of `POST /admin/switch`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(description="The model to make resident.", examples=["qwen-coder"])
    drain_timeout_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that requests in flight may still take; 0 cuts them at once.",
    )
    wait: bool = Field(default=False, description="Answer when the switch is over.")


async def read_json(request: Request, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """The body as received, and as a JSON object.

    Raises:
        BodyTooLarge, UnsupportedMediaType, InvalidRequest
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("The body must be sent as application/json.")
    body = await _read_body(request, max_bytes)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("The body is not valid JSON.") from exc
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body, value


def read_switch(value: dict[str, Any]) -> SwitchRequest:
    """Raises InvalidRequest, naming the first field that is wrong."""
    try:
        return SwitchRequest.model_validate(value)
    except ValidationError as exc:
        problem = exc.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])[:100]
        raise InvalidRequest(f"{field}: {problem['msg']}"[:300], field) from exc


def wanted_model(value: dict[str, Any], known: list[str]) -> str:
    """The `model` of a request. Raises InvalidRequest, UnknownModel."""
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("`model` is required, and is the name of a model.", "model")
    if model not in known:
        raise UnknownModel(f"The model `{model[:100]}` does not exist.", "model")
    return model


def check_chat(value: dict[str, Any]) -> tuple[bool, int]:
    """Whether a stream is asked for, and how many choices. Raises InvalidRequest."""
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` is required, and is a list that is not empty.", "messages")
    is_stream = value.get("stream") or False
    if not isinstance(is_stream, bool):
        raise InvalidRequest("`stream` must be true or false.", "stream")
    num_choices = value.get("n")
    if num_choices is None:
        num_choices = 1
    if not isinstance(num_choices, int) or isinstance(num_choices, bool) or num_choices < 1:
        raise InvalidRequest("`n` must be a positive whole number.", "n")
    return is_stream, num_choices


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
        raise InvalidRequest("The body ended early.") from exc
    return b"".join(chunks)
