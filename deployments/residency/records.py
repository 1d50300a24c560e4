"""Writes events and the machine's whole state as JSON lines, and replays them.

A line is one JSON object. `kind` says which event it is, or `Residency`: the whole state, at which
a replay can begin. `boot` tells the machines apart that wrote into the same file. What else a line
holds (the time of day) is for its readers.
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


def to_json(what: Event | Residency, **marks: str) -> str:
    """One line, without its end; `marks` are written in front of it."""
    return json.dumps(marks | {"kind": type(what).__name__} | _to_plain(what))


def from_json(line: str) -> Event | Residency:
    """What `to_json` was given. Raises ValueError where the line is damaged."""
    plain = json.loads(line)
    try:
        if plain["kind"] == Residency.__name__:
            return _machine(plain)
        event: Event = _from_plain(_EVENTS[plain["kind"]], plain)
    except (LookupError, TypeError) as exc:
        raise ValueError(f"no event: {line[:200]}") from exc
    return event


@dataclass(frozen=True)
class Step:
    """One replayed event, and what the machine made of it."""

    event: Event
    machine: Residency  # after the event; it goes on with the next step
    effects: list[Effect]
    changes: list[Change]


def replay(lines: Iterable[str]) -> Iterator[Step]:
    """Do again what machines did, in the order of the lines.

    Lines of a machine whose whole state has not come yet are left out. So is a line that was cut
    short, as the last one is when the server or its disk fails.
    """
    machines: dict[str, Residency] = {}
    for line in lines:
        if not line.endswith("}"):
            continue
        boot, what = json.loads(line).get("boot", ""), from_json(line)
        if isinstance(what, Residency):
            machines[boot] = what
        elif boot in machines:
            machine = machines[boot]
            with suppress(LeaseHeld):
                machine.handle(what)
            yield Step(what, machine, machine.take_effects(), machine.take_changes())


def _machine(plain: dict[str, Any]) -> Residency:
    hints = _hints(Residency)
    machine = Residency([], _from_plain(Policy, plain["policy"]))
    for field in fields(Residency):
        setattr(machine, field.name, _from_plain(hints[field.name], plain[field.name]))
    return machine


def _to_plain(value: Any) -> Any:
    """Dataclasses become objects, dictionaries lists of pairs: their keys are not only strings."""
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
    if origin is UnionType:  # with None, the only union there is
        return None if plain is None else _from_plain(args[0], plain)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{f.name: _from_plain(hints[f.name], plain[f.name]) for f in fields(kind)})
    if origin is list:
        return [_from_plain(args[0], item) for item in plain]
    if origin is tuple:
        return tuple(_from_plain(arg, item) for arg, item in zip(args, plain, strict=True))
    if origin is not None:  # a mapping
        return {_from_plain(args[0], key): _from_plain(args[1], item) for key, item in plain}
    return kind(plain) if issubclass(kind, (Enum, float)) else plain


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
