"""Equivalent requests have the same cache key; all other requests have different keys."""

import copy
import json
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.cache.key import cache_key

CHAT = "/v1/chat/completions"

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
requests = st.dictionaries(st.text(), values, max_size=6)


def key(request: Any, **changes: Any) -> str:
    fields = {"path": CHAT, "ignored": ("user",), "fingerprint": "f", "namespace": "n"} | changes
    return cache_key(request=request, **fields)


def shuffled(value: Any, draw: st.DataObject) -> Any:
    """Return the same value with the keys of all objects in another order."""
    if isinstance(value, dict):
        names = draw.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], draw) for name in names}
    return [shuffled(v, draw) for v in value] if isinstance(value, list) else value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values that hold no others."""
    if isinstance(value, dict) and value:
        return [p for name, v in value.items() for p in places(v, (*path, name))]
    if isinstance(value, list) and value:
        return [p for number, v in enumerate(value) for p in places(v, (*path, number))]
    return [path]


@given(requests, st.data())
def test_order_white_space_and_escapes_do_not_change_the_key(
    request: Any, data: st.DataObject
) -> None:
    """Client libraries differ in how they write the same JSON."""
    written = json.dumps(
        shuffled(request, data),
        indent=data.draw(st.sampled_from([None, 1, 4])),
        ensure_ascii=data.draw(st.booleans()),
    )
    assert key(json.loads(written)) == key(json.loads(json.dumps(request)))


@given(requests, st.data())
def test_a_change_of_any_value_changes_the_key(request: Any, data: st.DataObject) -> None:
    """At any depth."""
    assume("user" not in request)
    path = data.draw(st.sampled_from(places(request)))
    assume(path)
    other = copy.deepcopy(request)
    holder = other
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = data.draw(scalars)
    is_inside = len(path) > 1
    old, new = json.dumps(request, sort_keys=True), json.dumps(other, sort_keys=True)
    assume(
        is_inside or holder[path[-1]] != request[path[-1]]
    )  # 1 and 1.0 are the same at the top level
    assume(old != new)
    assert key(other) != key(request)


@given(requests, st.text(), values)
def test_an_additional_field_changes_the_key(request: Any, name: str, value: Any) -> None:
    """Also a field that the gateway does not know: the engine may know it."""
    assume(name not in request and name != "user")
    assert key(request | {name: value}) != key(request)


def test_top_level_numbers_are_compared_by_value() -> None:
    """0, 0.0, -0.0 and 0e0 are one `temperature`; `true` is not the number 1."""
    written = ["0", "0.0", "-0.0", "0e0", "-0"]
    assert len({key(json.loads(f'{{"temperature":{zero}}}')) for zero in written}) == 1
    assert key({"max_tokens": 16.0}) == key({"max_tokens": 16})
    assert key({"temperature": 1}) != key({"temperature": True})
    assert key({"seed": 2**53 + 1}) != key({"seed": float(2**53)})


def test_nested_numbers_are_compared_as_written() -> None:
    """The engine may repeat a schema's 1.0 as `1.0`."""
    assert key({"guided": {"enum": [1.0]}}) != key({"guided": {"enum": [1]}})


def test_ignored_fields_do_not_change_the_key() -> None:
    """`user` names an end user of the same caller."""
    assert key({"a": 1, "user": "x"}) == key({"a": 1, "user": "y"}) == key({"a": 1})


def test_route_fingerprint_and_namespace_change_the_key() -> None:
    """A change of one of them alone means another answer, or an answer of another caller."""
    others = [{"path": "/v1/completions"}, {"fingerprint": "g"}, {"namespace": "m"}]
    assert len({key({"a": 1}, **change) for change in [{}, *others]}) == 4


def test_a_lone_surrogate_has_a_key() -> None:
    """JSON may hold half a character; UTF-8 may not."""
    assert key(json.loads('{"a":"\\ud800"}')) != key({"a": "?"})
