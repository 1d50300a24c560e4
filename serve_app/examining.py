"""From a body's bytes to a checked request.

A large body is worked on in one of two threads, so that everybody else's requests go on: what one
step of it may take is bounded in `requests.decode` and in the checks.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from serve_app import requests
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
from serve_app.observation import Observation, observation
from serve_app.schemas import check_schemas
from serve_app.settings import Settings
from serve_app.surface import Body, Call

_SMALL_BYTES = 16_384  # less than a millisecond of checking, whatever it holds
_threads = ThreadPoolExecutor(2, "examining")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Examined:
    """A request that an engine may see."""

    body: Body
    value: dict[str, Any]
    pictures: list[Picture]
    has_changed: bool  # `value` is no longer what was received


async def examine(call: Call, raw: bytes, settings: Settings) -> Examined:
    """Read and check the body of a request at `call`. Raises InvalidRequest, UnknownModel."""
    observed = observation()  # not to be found from a thread
    return await _aside(len(raw), lambda: _examine(call, raw, settings, observed))


async def _aside(num_bytes: int, work: Callable[[], _T]) -> _T:
    if num_bytes <= _SMALL_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


def _examine(call: Call, raw: bytes, settings: Settings, observed: Observation) -> Examined:
    limits, models = settings.limits, settings.models
    value = requests.decode(raw, limits.max_values)
    spec = models[requests.wanted_model(value, models)]
    check_sizes(value)
    ignored = normalize(call, value, is_strict=limits.unknown_fields == "refuse")
    observed.ignored_fields = ignored.header()  # also told of a request that is refused below
    body = check_fields(call, value)
    check_counts(body, limits)
    is_shorter = lower_length(value, spec)
    check_tools(body, value, spec)
    check_schemas(body, value, limits)
    found = pictures(body, value)
    check_vision(found, spec)
    return Examined(body, value, found, ignored.has_changed or is_shorter)


def encode(value: dict[str, Any]) -> bytes:
    """A request that has changed, as it is sent on."""
    return msgspec.json.encode(value)
