"""The key: the same for the same question however it is written, another for any other."""

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
    said = {"path": CHAT, "ignored": ("user",), "fingerprint": "f", "namespace": "n"} | changes
    return cache_key(request=request, **said)


def shuffled(value: Any, draw: st.DataObject) -> Any:
    """The same with the keys of all objects in another order."""
    if isinstance(value, dict):
        names = draw.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], draw) for name in names}
    return [shuffled(v, draw) for v in value] if isinstance(value, list) else value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value that holds no others."""
    if isinstance(value, dict) and value:
        return [p for name, v in value.items() for p in places(v, (*path, name))]
    if isinstance(value, list) and value:
        return [p for number, v in enumerate(value) for p in places(v, (*path, number))]
    return [path]


@given(requests, st.data())
def test_order_white_space_and_escapes_do_not_count(request: Any, data: st.DataObject) -> None:
    """What one client's library writes so and another's otherwise."""
    written = json.dumps(
        shuffled(request, data),
        indent=data.draw(st.sampled_from([None, 1, 4])),
        ensure_ascii=data.draw(st.booleans()),
    )
    assert key(json.loads(written)) == key(json.loads(json.dumps(request)))


@given(requests, st.data())
def test_every_value_counts(request: Any, data: st.DataObject) -> None:
    """One value anywhere inside is another: so is the key."""
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
    assume(is_inside or holder[path[-1]] != request[path[-1]])  # 1 and 1.0 are the same up here
    assume(old != new)
    assert key(other) != key(request)


@given(requests, st.text(), values)
def test_a_field_more_counts(request: Any, name: str, value: Any) -> None:
    """Also one that nobody here knows: the engine may."""
    assume(name not in request and name != "user")
    assert key(request | {name: value}) != key(request)


def test_numbers_of_the_request_itself_count_by_value() -> None:
    """`temperature` is 0, 0.0, -0.0 or 0e0: all the same; true is no number."""
    written = ["0", "0.0", "-0.0", "0e0", "-0"]
    assert len({key(json.loads(f'{{"temperature":{zero}}}')) for zero in written}) == 1
    assert key({"max_tokens": 16.0}) == key({"max_tokens": 16})
    assert key({"temperature": 1}) != key({"temperature": True})
    assert key({"seed": 2**53 + 1}) != key({"seed": float(2**53)})


def test_numbers_inside_count_as_they_are_written() -> None:
    """A schema's 1.0 may come out as `1.0`."""
    assert key({"guided": {"enum": [1.0]}}) != key({"guided": {"enum": [1]}})


def test_fields_that_change_nothing_do_not_count() -> None:
    """The same question of another user of the same caller."""
    assert key({"a": 1, "user": "x"}) == key({"a": 1, "user": "y"}) == key({"a": 1})


def test_route_fingerprint_and_namespace_count() -> None:
    """Each alone makes another answer, or another's answer."""
    others = [{"path": "/v1/completions"}, {"fingerprint": "g"}, {"namespace": "m"}]
    assert len({key({"a": 1}, **change) for change in [{}, *others]}) == 4


def test_a_lone_surrogate_has_a_key() -> None:
    """JSON may hold half a character; UTF-8 may not."""
    assert key(json.loads('{"a":"\\ud800"}')) != key({"a": "?"})
