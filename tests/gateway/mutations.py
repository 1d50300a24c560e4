"""Spoils right requests: values, fields and sizes that no program should send, and some do.

A mutation is told by names alone, so that a failing request reads in one line; `Mutated.body` is
its bytes. Bodies are put together as text, because no library writes a key twice, `1e999`, or half
a character.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from tests.gateway.good_requests import GOOD, MODEL

Path = tuple[str | int, ...]

SMALL = {
    "null": b"null",
    "true": b"true",
    "0": b"0",
    "-1": b"-1",
    "-0.0": b"-0.0",
    "1.5": b"1.5",
    "2**70": str(2**70).encode(),
    "-2**70": str(-(2**70)).encode(),
    "1e308": b"1e308",
    "1e999": b"1e999",
    "NaN": b"NaN",
    "-Infinity": b"-Infinity",
    "NaN as text": b'"NaN"',
    "no text": b'""',
    "a blank": b'" "',
    "a zero character": b'"\\u0000"',
    "a line break": b'"X\\nCudaError: forged"',
    "half a character": b'"\\ud800"',
    "half a character, raw": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff"',
    "right to left": '"\u202eabc"'.encode(),
    "[]": b"[]",
    "{}": b"{}",
    "[null]": b"[null]",
    "[[]]": b"[[]]",
    "[{}]": b"[{}]",
    "{null}": b'{"": null}',
    "a text in a list": b'["a"]',
    "an unknown type": b'{"type": "nope"}',
    "not json": b"{",
    "minLength -1": b'{"type": "string", "minLength": -1}',
    "maximum 1e999": b'{"type": "number", "maximum": 1e999}',
    "a foreign $ref": b'{"$ref": "http://127.0.0.1:1/x"}',
    "a $ref to itself": b'{"$ref": "#"}',
    "a type of null": b'{"type": null, "properties": null, "items": null}',
}
_MESSAGE = b'{"role":"user","content":"a"}'
# What a size fills, item by item.
_ITEMS = {
    "a list of zeros": b"0",
    "a list of objects": b"{}",
    "a list of messages": _MESSAGE,
    "a list of all kinds": b'0,-1,null,true,"a",{},[],1.5,' + _MESSAGE,
}
LARGE = [
    *_ITEMS,
    "a text",
    "a text of quotes",
    "a text of half characters",
    "a number",
    "a deep list",
    "a deep schema",
    "a wide schema",
    "an enum",
    "a regular expression",
    "an object",
    "an object of token ids",
    "a number with a long text",
]
SIZES = {"2 kB": 2_000, "60 kB": 60_000, "200 kB": 200_000, "2 MB": 2_000_000}
HUGE = SIZES | {"20 MB": 20_000_000}
# The last is how the openai package names `async`, which vLLM puts into its calls of tools.
NAMES = ["x_unknown", "", "__proto__", "a" * 5000, "model_config", "\ud800", "type", "async_"]


class Kind(StrEnum):
    REPLACE = "replace"
    REMOVE = "remove"
    ADD = "add"  # an unknown field, to an object
    TWICE_FIRST = "twice, odd first"  # the key; most parsers take the last
    TWICE_LAST = "twice, odd last"


class Leaving(StrEnum):
    """How a client goes before its answer."""

    FIN = "FIN"
    RST = "RST"
    HALF = "half-close"
    MID_FIN = "FIN in the body"
    MID_RST = "RST in the body"


@dataclass(frozen=True)
class Edit:
    kind: Kind
    at: Path
    odd: str  # a key of SMALL, or one of LARGE with a size
    name: str = ""  # of a field that is added


@dataclass(frozen=True)
class Mutated:
    """A request as it is sent. `cuts`: where its body is split, as shares of it."""

    path: str
    number: int  # of the good request
    edits: tuple[Edit, ...]
    cuts: tuple[float, ...] = ()
    leaving: Leaving | None = None

    @property
    def body(self) -> bytes:
        good = {"model": MODEL} | GOOD[self.path][self.number]
        return _render(good, self.edits, ())

    def pieces(self) -> list[bytes]:
        body = self.body
        at = sorted({int(cut * len(body)) for cut in self.cuts} | {0, len(body)})
        return [body[start:end] for start, end in pairwise(at)]


def paths(value: Any, at: Path = ()) -> list[Path]:
    """Every place in a JSON value, the whole first."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [at] + [path for key, child in inner for path in paths(child, (*at, key))]


def every_place(path: str) -> Iterator[Mutated]:
    """One fault in each: null everywhere, too much in every field, and in every object what the
    engine refuses with the text of the whole request."""
    seen: set[Path] = set()  # fields that an earlier good request has too
    for number, good in enumerate(GOOD[path]):
        for at in paths({"model": MODEL} | good):
            value = reduce(lambda inner, key: inner[key], at, {"model": MODEL} | good)
            is_object = isinstance(value, dict)
            odds = ["null"]
            if len(at) == 1 and at not in seen:
                odds.append("an object, 2 MB" if is_object else "a list of all kinds, 2 MB")
            if is_object:
                odds.append("a number with a long text, 60 kB")
            seen.add(at)
            for odd in odds:
                yield Mutated(path, number, (Edit(Kind.REPLACE, at, odd),), (0.5,))


@st.composite
def mutated(draw: st.DrawFn, path: str, sizes: dict[str, int]) -> Mutated:
    """A right request of `path` with one to three faults, split anywhere, and maybe left alone."""
    number = draw(st.integers(0, len(GOOD[path]) - 1))
    places = paths({"model": MODEL} | GOOD[path][number])
    odds = st.one_of(
        st.sampled_from(list(SMALL)),
        st.builds(
            lambda what, size: f"{what}, {size}",
            st.sampled_from(LARGE),
            st.sampled_from(list(sizes)),
        ),
    )
    kinds = st.one_of(st.just(Kind.REPLACE), st.sampled_from(Kind))
    shallow = [place for place in places if len(place) < 2]  # what the gateway reads itself
    where = st.one_of(st.sampled_from(shallow), st.sampled_from(places))
    edit = st.builds(Edit, kinds, where, odds, st.sampled_from(NAMES))
    return Mutated(
        path,
        number,
        tuple(draw(st.lists(edit, min_size=1, max_size=3, unique_by=lambda edit: edit.at))),
        tuple(draw(st.lists(st.floats(0, 1), max_size=5))),
        draw(st.sampled_from([None] * 10 + list(Leaving))),
    )


def odd_value(name: str) -> bytes:
    """The JSON text behind a name."""
    if name in SMALL:
        return SMALL[name]
    what, _, size = name.rpartition(", ")
    num_bytes = HUGE[size]
    if item := _ITEMS.get(what):
        return b"[" + b",".join([item] * (num_bytes // (len(item) + 1))) + b"]"
    match what:
        case "a text":
            return b'"' + b"a" * num_bytes + b'"'
        case "a text of quotes":
            return b'"' + b"'msg': '" * (num_bytes // 8) + b'"'
        case "a text of half characters":
            return b'"' + b"\\ud83c\\udfac" * (num_bytes // 12) + b"\\ud83c" + b'"'
        case "a number":
            return b"9" * num_bytes
        case "a deep list":
            return b"[" * (num_bytes // 2) + b"]" * (num_bytes // 2)
        case "a deep schema":
            depth = num_bytes // 29
            head = b'{"type":"array","items":'
            return head * depth + b'{"type":"null"}' + b"}" * depth
        case "a wide schema":
            fields = (
                b'"p%d":{"type":"string","maxLength":999999}' % n for n in range(num_bytes // 45)
            )
            return b'{"type":"object","properties":{' + b",".join(fields) + b"}}"
        case "an enum":
            return b'{"enum":[' + b",".join(b'"%d"' % n for n in range(num_bytes // 9)) + b"]}"
        case "a regular expression":
            words = b"|".join(b"w%d" % n for n in range(num_bytes // 8))
            return b'{"type":"string","pattern":"' + words + b'"}'
        case "an object":
            return b"{" + b",".join(b'"k%d":0' % n for n in range(num_bytes // 11)) + b"}"
        case "an object of token ids":
            return b"{" + b",".join(b'"%d":1e9' % n for n in range(num_bytes // 12)) + b"}"
        case "a number with a long text":
            text = b"'msg': '" * (num_bytes // 8)
            return b'{"type":"number","maximum":1e999,"description":"' + text + b'"}'
    raise KeyError(name)


def _render(value: Any, edits: tuple[Edit, ...], at: Path) -> bytes:
    here = [edit for edit in edits if edit.at == at]
    if any(edit.kind is Kind.REPLACE for edit in here):
        return odd_value(next(e for e in here if e.kind is Kind.REPLACE).odd)
    if isinstance(value, list):
        kept = (n for n in range(len(value)) if not _is_removed(edits, (*at, n)))
        return b"[" + b",".join(_render(value[n], edits, (*at, n)) for n in kept) + b"]"
    if not isinstance(value, dict):
        return json.dumps(value).encode()
    fields = []
    for key, child in value.items():
        name, inner = json.dumps(key).encode() + b":", (*at, key)
        for edit in edits:
            if edit.at == inner and edit.kind is Kind.TWICE_FIRST:
                fields.append(name + odd_value(edit.odd))
        if not _is_removed(edits, inner):
            fields.append(name + _render(child, edits, inner))
        for edit in edits:
            if edit.at == inner and edit.kind is Kind.TWICE_LAST:
                fields.append(name + odd_value(edit.odd))
    for edit in here:
        if edit.kind is Kind.ADD:
            fields.append(json.dumps(edit.name).encode() + b":" + odd_value(edit.odd))
    return b"{" + b",".join(fields) + b"}"


def _is_removed(edits: tuple[Edit, ...], at: Path) -> bool:
    return any(edit.at == at and edit.kind is Kind.REMOVE for edit in edits)
