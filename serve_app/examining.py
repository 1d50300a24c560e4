"""From a body's bytes to a checked request.

A large body is worked on beside the event loop (`aside.py`); what one step of it may take is
bounded in `reading.decode` and in the checks.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from serve_app import reading
from serve_app.aside import aside
from serve_app.checking import (
    check_counts,
    check_fields,
    check_sizes,
    check_tools,
    check_vision,
    lower_length,
)
from serve_app.content import Picture, pictures
from serve_app.normalizing import normalize
from serve_app.observation import observation
from serve_app.schemas import check_schemas
from serve_app.settings import Settings
from serve_app.surface import Body, Call


@dataclass(frozen=True)
class Examined:
    """A request that an engine may see."""

    body: Body
    value: dict[str, Any]
    pictures: list[Picture]
    has_changed: bool  # `value` is no longer what was received


async def examine(call: Call, raw: bytes, settings: Settings) -> Examined:
    """Read and check the body of a request at `call`. Raises InvalidRequest, UnknownModel."""
    return await aside(len(raw), lambda: _examine(call, raw, settings))


def _examine(call: Call, raw: bytes, settings: Settings) -> Examined:
    limits, models = settings.limits, settings.models
    value = reading.decode(raw, limits.max_values)
    spec = models[reading.wanted_model(value, models)]
    check_sizes(value)
    ignored = normalize(call, value, is_strict=limits.unknown_fields == "refuse")
    observation().ignored_fields = ignored.header()  # also told of a request that is refused below
    body = check_fields(call, value)
    check_counts(body, limits)
    is_shorter = lower_length(value, spec)
    check_tools(body, value, spec)
    check_schemas(body, value, limits, ignored)
    observation().ignored_fields = ignored.header()
    found = pictures(body, value)
    check_vision(found, spec)
    return Examined(body, value, found, ignored.has_changed or is_shorter)


def encode(value: dict[str, Any]) -> bytes:
    """A request that has changed, as it is sent on."""
    return msgspec.json.encode(value)
