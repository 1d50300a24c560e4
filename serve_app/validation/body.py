"""Turns the bytes of a body into a checked request.

A thread checks large bodies (`threads.py`). `reading.decode` and the checks themselves bound how
long one step can take.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from deployments.settings import Settings
from deployments.settings.names import ModelNames, NamedModel
from serve_app.protocol.calls import Call
from serve_app.protocol.fields import Body
from serve_app.telemetry.context import request_context
from serve_app.validation import reading
from serve_app.validation.fields import (
    check_counts,
    check_fields,
    check_sizes,
    check_tools,
    check_vision,
    lower_length,
)
from serve_app.validation.json_schema import check_schemas
from serve_app.validation.message_content import Picture, pictures
from serve_app.validation.names import apply_name
from serve_app.validation.normalizing import normalize
from serve_app.validation.threads import in_thread_if_large


@dataclass(frozen=True)
class ValidRequest:
    """A checked request, which may be sent to an engine."""

    model: NamedModel
    body: Body
    value: dict[str, Any]
    pictures: list[Picture]
    has_changed: bool  # `value` differs from the body as received


async def validate(call: Call, raw: bytes, settings: Settings, names: ModelNames) -> ValidRequest:
    """Read and check the body of a request at `call`. Raises InvalidRequest, UnknownModel."""
    return await in_thread_if_large(len(raw), lambda: _validate(call, raw, settings, names))


def _validate(call: Call, raw: bytes, settings: Settings, names: ModelNames) -> ValidRequest:
    limits = settings.limits
    value = reading.decode(raw, limits.max_values)
    model = reading.wanted_model(value, names)
    spec = model.spec
    has_renamed = apply_name(value, model)
    check_sizes(value)
    is_strict, reasons = limits.unknown_fields == "refuse", bool(spec.engine.reasoning_parser)
    ignored = normalize(call, value, is_strict=is_strict, model_reasons=reasons)
    # Already here, so that the header is also on the answer to a request that is refused below.
    request_context().ignored_fields = ignored.header()
    body = check_fields(call, value)
    check_counts(body, limits)
    has_lowered = lower_length(value, spec)
    check_tools(body, value, spec)
    check_schemas(body, value, limits, ignored)
    request_context().ignored_fields = ignored.header()
    found = pictures(body, value)
    check_vision(found, spec)
    has_changed = has_renamed or ignored.has_changed or has_lowered
    return ValidRequest(model, body, value, found, has_changed)


def encode(value: dict[str, Any]) -> bytes:
    """Encode a request that validation has changed."""
    return msgspec.json.encode(value)
