"""What the gateway itself checks of a request; the rest is the engine's."""

import asyncio
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from serve_app.admission import Intent
from serve_app.errors import (
    BodyTooLarge,
    InvalidRequest,
    UnknownModel,
    UnsupportedMediaType,
    UploadTimeout,
)
from serve_app.settings import ModelSpec, Task

_MAX_ADMIN_BYTES, _MAX_ADMIN_VALUES = 64_000, 1_000
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_EVENT_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


class _AdminRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Drain = Annotated[
    float | None,
    Field(
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that requests in flight may still take; 0 cuts them at once.",
    ),
]
_Task = Annotated[
    Task | None,
    Field(description="What it shall do: generate or embed. Default: the model's first task."),
]
_Wait = Annotated[bool, Field(description="Answer when the switch is over.")]


class SwitchRequest(_AdminRequest):
    """The body of `POST /admin/switch`."""

    model: str = Field(description="The model to make resident.", examples=["qwen-coder"])
    task: _Task = None
    drain_timeout_s: _Drain = None
    wait: _Wait = False
    dry_run: bool = Field(default=False, description="Tell what would happen; change nothing.")


class UnloadRequest(_AdminRequest):
    """The body of `POST /admin/unload`."""

    drain_timeout_s: _Drain = None
    wait: _Wait = False


class LeaseRequest(_AdminRequest):
    """The body of `POST /admin/lease`."""

    model: str = Field(description="The model that stays resident.", examples=["qwen-coder"])
    task: _Task = None
    seconds: float = Field(gt=0, le=86400, allow_inf_nan=False, description="How long, from now.")
    owner: str = Field(min_length=1, max_length=100, description="Who asks; shown to others.")


_Body = TypeVar("_Body", bound=_AdminRequest)


async def read_body(request: Request, max_bytes: int, deadline: float) -> bytes:
    """The body as received, which claims to be JSON. `deadline`: in the event loop's time.

    Raises:
        BodyTooLarge, UnsupportedMediaType, UploadTimeout, InvalidRequest
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"The body's Content-Encoding is `{encoding[:40]}`; it must be sent as it is."
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("The body must be sent as application/json.")
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_body(request, max_bytes)
    except TimeoutError:
        raise UploadTimeout("The body did not come in time.") from None


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


async def read_admin(request: Request, kind: type[_Body], timeout_s: float) -> _Body:
    """The body of an admin's request.

    Raises:
        InvalidRequest: it names the first field that is wrong.
        BodyTooLarge, UnsupportedMediaType, UploadTimeout
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    value = decode(await read_body(request, _MAX_ADMIN_BYTES, deadline), _MAX_ADMIN_VALUES)
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        raise invalid_field(exc.errors()[0]) from exc


def invalid_field(problem: Mapping[str, Any]) -> InvalidRequest:
    """One of pydantic's errors as ours; names the field, not where it was looked for."""
    field = ".".join(str(part) for part in problem["loc"] if part not in ("query", "path"))[:100]
    return InvalidRequest(f"{field}: {problem['msg']}"[:300], field)


def intent(request: Request) -> Intent:
    """What `X-Switch` asks for. Raises InvalidRequest."""
    value = request.headers.get("x-switch", Intent.WAIT)
    try:
        return Intent(value.strip().lower())
    except ValueError:
        choices = ", ".join(Intent)
        raise InvalidRequest(f"X-Switch must be one of {choices}.", "X-Switch") from None


def wants_cache(request: Request) -> bool:
    """Whether `X-Cache` lets an answer be given again. Raises InvalidRequest."""
    value = request.headers.get("x-cache", "on").strip().lower()
    if value not in ("on", "off"):
        raise InvalidRequest("X-Cache must be one of on, off.", "X-Cache")
    return value == "on"


def max_wait_s(request: Request) -> float:
    """Seconds that `X-Max-Wait` lets a request wait; without, infinite. Raises InvalidRequest."""
    value = request.headers.get("x-max-wait")
    if value is None:
        return math.inf
    if not _SECONDS.fullmatch(value.strip()):
        raise InvalidRequest("X-Max-Wait must be a number of seconds, 0 or more.", "X-Max-Wait")
    return float(value)


def event_id(request: Request) -> tuple[str, int] | None:
    """Where `Last-Event-ID` says that the client is. Raises InvalidRequest."""
    value = request.headers.get("last-event-id")
    if not value:
        return None
    boot, separator, number = value.rpartition("-")
    if not separator or not _EVENT_NUMBER.fullmatch(number):
        raise InvalidRequest("Last-Event-ID is none that was given here.", "Last-Event-ID")
    return boot[:100], int(number)


def wanted_model(value: dict[str, Any], known: Collection[str]) -> str:
    """The `model` of a request. Raises InvalidRequest, UnknownModel."""
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("`model` is required, and is the name of a model.", "model")
    check_known(model, known)
    return model


def target(model: str, task: Task | None, models: Mapping[str, ModelSpec]) -> str:
    """What a switch to `model`, for `task`, leads to. Raises UnknownModel, InvalidRequest."""
    check_known(model, models)
    spec = models[model]
    if task is None:
        return spec.target
    if task not in spec.tasks:
        has = " and ".join(spec.tasks)
        raise InvalidRequest(f"{model} can not {task}; it can {has}.", "task")
    return spec.target_for(task)


def check_known(model: str, known: Collection[str]) -> None:
    """Raises UnknownModel."""
    if model not in known:
        raise UnknownModel(
            f"The model `{model[:100]}` does not exist; there are {', '.join(known)}.", "model"
        )


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
