"""Reads the headers of requests, and the bodies of `/admin`."""

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
        description="Seconds that requests in flight get to finish; 0 cuts them at once.",
    ),
]
_Task = Annotated[
    Task | None,
    Field(description="`generate` or `embed`. Default: the model's first task."),
]
_Wait = Annotated[bool, Field(description="Answer only when the switch is over.")]


class SwitchRequest(_AdminRequest):
    """The body of `POST /admin/switch`."""

    model: str = Field(description="The model to make resident.", examples=["qwen-coder"])
    task: _Task = None
    drain_timeout_s: _Drain = None
    wait: _Wait = False
    dry_run: bool = Field(
        default=False, description="Return what would happen, but change nothing."
    )


class UnloadRequest(_AdminRequest):
    """The body of `POST /admin/unload`."""

    drain_timeout_s: _Drain = None
    wait: _Wait = False


class LeaseRequest(_AdminRequest):
    """The body of `POST /admin/lease`."""

    model: str = Field(description="The model to keep resident.", examples=["qwen-coder"])
    task: _Task = None
    seconds: float = Field(
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="Length of the lease, from when the model serves.",
    )
    owner: str = Field(
        min_length=1, max_length=100, description="Name of the owner; others see it."
    )


_Body = TypeVar("_Body", bound=_AdminRequest)


async def read_admin(request: Request, kind: type[_Body], timeout_s: float) -> _Body:
    """Read and check the body of an admin request.

    Raises:
        InvalidRequest: names the first wrong field.
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
    """Read `X-Switch`. Raises InvalidRequest."""
    value = request.headers.get("x-switch", OnAbsent.WAIT)
    try:
        return OnAbsent(value.strip().lower())
    except ValueError:
        choices = ", ".join(OnAbsent)
        raise InvalidRequest(
            f"Invalid 'X-Switch': it must be one of {choices}.", "X-Switch"
        ) from None


def wants_cache(request: Request) -> bool:
    """Whether `X-Cache` allows an answer from the cache. Raises InvalidRequest."""
    value = request.headers.get("x-cache", "on").strip().lower()
    if value not in ("on", "off"):
        raise InvalidRequest("Invalid 'X-Cache': it must be one of on, off.", "X-Cache")
    return value == "on"


def max_wait_s(request: Request) -> float:
    """Read `X-Max-Wait` in seconds; infinite if it is not sent. Raises InvalidRequest."""
    value = request.headers.get("x-max-wait")
    if value is None:
        return math.inf
    if not _SECONDS.fullmatch(value.strip()):
        raise InvalidRequest(
            "Invalid 'X-Max-Wait': it must be a number of seconds, 0 or more.", "X-Max-Wait"
        )
    return float(value)


def event_id(request: Request) -> tuple[str, int] | None:
    """Read `Last-Event-ID`, as boot and number. Raises InvalidRequest."""
    value = request.headers.get("last-event-id")
    if not value:
        return None
    boot, separator, number = value.rpartition("-")
    if not separator or not _EVENT_NUMBER.fullmatch(number):
        raise InvalidRequest(
            "Invalid 'Last-Event-ID': it must be the id of an event.", "Last-Event-ID"
        )
    return boot[:100], int(number)


def target(model: str, task: Task | None, names: ModelNames, param: str = "task") -> str:
    """Return the target (model and task) of a switch.

    `param`: the field of the request that is wrong if the model does not have the task.

    Raises:
        UnknownModel, InvalidRequest
    """
    spec = reading.find_model(model, names).spec
    if task is None:
        return spec.target
    if task not in spec.tasks:
        tasks = " and ".join(spec.tasks)
        raise InvalidRequest(f"{model} cannot {task}; it can {tasks}.", param)
    return spec.target_for(task)
