"""Writes events and the machine's whole state as JSON lines, and replays them.

A line is one JSON object. `kind` is the event's class, or `Residency` for the whole state, at which
a replay can begin. `boot` tells apart the machines that wrote into the same file. Anything else in
a line (the time of day) is for people who read it.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from deployments.residency.changes import Change
from deployments.residency.events import Event
from deployments.residency.leases import LeaseHeld
from deployments.residency.machine import Residency
from deployments.residency.types import Effect, Policy

_EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}


def to_json(value: Event | Residency, **marks: str) -> str:
    """Write `value` as one line without its line end; `marks` are fields in front of its own."""
    return json.dumps(marks | {"kind": type(value).__name__} | _to_plain(value))


def from_json(line: str) -> Event | Residency:
    """Read a line of `to_json`. Raises ValueError if the line is damaged."""
    plain = json.loads(line)
    try:
        if plain["kind"] == Residency.__name__:
            return _machine(plain)
        event: Event = _from_plain(_EVENTS[plain["kind"]], plain)
    except (LookupError, TypeError) as exc:
        raise ValueError(f"not an event or a state: {line[:200]}") from exc
    return event


@dataclass(frozen=True)
class Step:
    """One replayed event, and what the machine did then."""

    event: Event
    machine: Residency  # after the event; the next step changes it further
    effects: list[Effect]
    changes: list[Change]


def replay(lines: Iterable[str]) -> Iterator[Step]:
    """Hand the events of the lines to machines again, in order.

    Skips a machine's lines until its first whole state, and a line that was cut short, as the last
    line is when the server or its disk fails.
    """
    machines: dict[str, Residency] = {}
    for line in lines:
        if not line.endswith("}"):
            continue
        boot, value = json.loads(line).get("boot", ""), from_json(line)
        if isinstance(value, Residency):
            machines[boot] = value
        elif boot in machines:
            machine = machines[boot]
            with suppress(LeaseHeld):
                machine.handle(value)
            yield Step(value, machine, machine.take_effects(), machine.take_changes())


def _machine(plain: dict[str, Any]) -> Residency:
    hints = _hints(Residency)
    machine = Residency([], _from_plain(Policy, plain["policy"]))
    for field in fields(Residency):
        setattr(machine, field.name, _from_plain(hints[field.name], plain[field.name]))
    return machine


def _to_plain(value: Any) -> Any:
    """Turn dataclasses into objects, and dicts into lists of pairs: keys in JSON are strings."""
    if is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if isinstance(value, dict):
        return [[_to_plain(key), _to_plain(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(kind: Any, plain: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:  # always a type or None
        return None if plain is None else _from_plain(args[0], plain)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{f.name: _from_plain(hints[f.name], plain[f.name]) for f in fields(kind)})
    if origin is list:
        return [_from_plain(args[0], item) for item in plain]
    if origin is tuple:
        return tuple(_from_plain(arg, item) for arg, item in zip(args, plain, strict=True))
    if origin is not None:  # a dict or Mapping
        return {_from_plain(args[0], key): _from_plain(args[1], item) for key, item in plain}
    return kind(plain) if issubclass(kind, (Enum, float)) else plain


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
