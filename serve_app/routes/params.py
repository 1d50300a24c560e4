"""Reads what a client sets beside the body: headers, and the bodies of `/admin`."""

import asyncio
import math
import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from deployments.settings import Task
from deployments.settings.names import ModelNames
from serve_app.gateway.admission import OnAbsent
from serve_app.protocol.errors import InvalidRequest
from serve_app.validation import reading

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
    dry_run: bool = Field(default=False, description="Say what would happen; change nothing.")


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


async def read_admin(request: Request, kind: type[_Body], timeout_s: float) -> _Body:
    """The body of an admin's request.

    Raises:
        InvalidRequest: it names the first field that is wrong.
        BodyTooLarge, UnsupportedMediaType, UploadTimeout
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    value = reading.decode(
        await reading.read_body(request, _MAX_ADMIN_BYTES, deadline), _MAX_ADMIN_VALUES
    )
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        raise reading.invalid_field(exc.errors()[0]) from exc


def on_absent(request: Request) -> OnAbsent:
    """What `X-Switch` asks for. Raises InvalidRequest."""
    value = request.headers.get("x-switch", OnAbsent.WAIT)
    try:
        return OnAbsent(value.strip().lower())
    except ValueError:
        choices = ", ".join(OnAbsent)
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
        raise InvalidRequest("Unknown Last-Event-ID.", "Last-Event-ID")
    return boot[:100], int(number)


def target(model: str, task: Task | None, names: ModelNames) -> str:
    """What a switch to `model`, for `task`, leads to. Raises UnknownModel, InvalidRequest."""
    spec = reading.find_model(model, names).spec
    if task is None:
        return spec.target
    if task not in spec.tasks:
        has = " and ".join(spec.tasks)
        raise InvalidRequest(f"{model} cannot {task}; it can {has}.", "task")
    return spec.target_for(task)
