"""Reads the transition table in the residency machine's docstring, and explains by it what the
machine did."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

from deployments.residency import Effect, Event, State, Unload, machine

_ROW = re.compile(
    r"^ {4}([A-Z]+) +(any|[A-Z]\w+) +([A-Z]+) +(-|[A-Z][\w()]+)(?:  .*)?$", re.MULTILINE
)
_ANY = "any"
_EVENTS = {kind.__name__ for kind in get_args(Event)}


class Row(NamedTuple):
    """One transition: an event, in one state, leads to another and has at most one effect."""

    state: State
    event: str
    next_state: State
    effects: tuple[str, ...]


def _rows() -> Iterator[Row]:
    assert machine.__doc__
    for state, event, next_state, effect in _ROW.findall(machine.__doc__):
        assert event in {*_EVENTS, _ANY}, event
        yield Row(State[state], event, State[next_state], () if effect == "-" else (effect,))


TABLE = list(_rows())


def explain(
    before: State, event: Event, after: State, effects: Sequence[Effect]
) -> tuple[Row, ...]:
    """The rows of the table that lead from `before` to `after` with just these effects: the event's
    own row, if it has one, then rows of `any`. The fewest rows win. The machine must have been
    woken at its deadlines: only `Ticked` can be too late.

    Raises AssertionError where the table has no such transition.
    """
    name, names = type(event).__name__, tuple(_name(effect) for effect in effects)
    paths: list[tuple[Row, ...]] = [()]
    paths += [(row,) for row in TABLE if (row.state, row.event) == (before, name)]
    for _ in range(4):  # no event has led further
        for path in paths:
            state = path[-1].next_state if path else before
            if state is after and sum((row.effects for row in path), ()) == names:
                return path
        paths = [
            (*path, row)
            for path in paths
            for row in TABLE
            if row.event == _ANY and row.state is (path[-1].next_state if path else before)
        ]
    raise AssertionError(f"not in the table: {before.name} {name} -> {after.name} {names}")


def _name(effect: Effect) -> str:
    kind = type(effect).__name__
    return f"{kind}({effect.mode.name})" if isinstance(effect, Unload) else kind
