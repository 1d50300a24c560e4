"""Checks schemas, patterns and choices before the engine compiles them into a grammar.

A few bytes can keep the engine's compiler (xgrammar) busy for minutes, and while it works the
tokens of other requests come late. All schemas of a request are therefore counted together, and
bounded by what costs time, to some 7 s at the very worst. CPU seconds, measured with xgrammar 0.2
and the demo's vocabulary of 49,152 tokens on one core:

| | |
|---|---|
| `maxLength` 20, 64, 128, 200, 100,000 | 0.15, 0.6, 1.25, 2.05, 2.05 |
| 20 texts of one length; two of 200 and 201; eight of 30 to 37 | as one; 3.8; 2.3 |
| `minLength` 20, 128, 4,096 | 0.15, 0.65, 0.65 |
| `minItems`, `maxItems` up to 100,000, nested three deep | 0.00 |
| `minProperties` 12, 25, 50, 100 of twice as many `properties` | 0.03, 0.12, 1.1, 18.6 |
| `minProperties` 1 of 4, 40 objects with 25 `properties` | 0.16, 9.2 |
| 100, 300 properties that are each 28 lists in one another | 1.2, 9.1 |
| names of properties of 25,000, 250,000 characters together | 0.15, 1.9 |
| `enum` of 2,000, 5,000, 20,000 words | 0.05, 0.12, 27 |
| words of 20,000, 100,000 characters together | 0.8, 2.2 |
| a pattern of 500, 2,000 classes | 0.5, 1.9 |
| patterns `.{0,100}`, `([a-z]{1,20} ){1,20}`, three such nested | 0.9, 0.03, 51 |
| 300 properties of one object, 1,000 in a hundred objects | 0.3, 0.25 |

Bounds of lengths are common (pydantic's `max_length=4096`), and without one a schema only allows
more. So what costs too much of them is left out and named in `X-Ignored-Fields`, not refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployments.settings import Limits
from serve_app.protocol.anthropic import CountBody
from serve_app.protocol.errors import InvalidValue
from serve_app.protocol.fields import Body
from serve_app.protocol.openai import ChatBody, CompletionBody, ResponsesBody
from serve_app.validation.normalizing import Ignored

_MAX_NODES = 20_000  # objects and lists, of all schemas
_MAX_COMPILED_NODES = 3_000
_MAX_PROPERTIES = 1_000  # of all schemas of a request
_MAX_WORDS, _MAX_WORD_CHARS = 2_000, 20_000  # of `enum`, `const` and `choice`
_MAX_PATTERN_CHARS = 4_000
_MAX_REPEATS = 128  # in one `{m,n}` of a pattern: the compiler takes no more
_REPEATS = re.compile(r"\{(\d*)(?:, *(\d*))?\}")
_MAX_ATOMS = 400  # of all patterns, with their repetitions written out
_NUMBER = re.compile(r"\[\d+\]")
_MAX_GRAMMAR_CHARS = 10_000
_MAX_SCHEMA_CHARS = 100_000  # Claude Code's 25 tools have 74,000
_MAX_LENGTHS = 200  # the sum of the different ones that texts are bounded by
_MAX_COUNTED = 50  # properties of objects that say how many of them are needed or allowed
_MAX_COUNT = 2**31 - 1

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_VALUES = ("enum", "const", "default", "example", "examples")  # what they hold is no schema


def check_schemas(body: Body, value: dict[str, Any], limits: Limits, ignored: Ignored) -> None:
    """All that shall constrain the answer to a request. Raises InvalidValue.

    Takes bounds that cost too much out of `value`, and adds them to `ignored`.
    """
    work = _Work(limits, ignored)
    for param, schema, is_compiled in _schemas(body, value):
        if schema is not None:
            work.add_schema(schema, param, is_compiled=is_compiled)
    constraint = value.get("structured_outputs")
    if isinstance(constraint, dict):
        work.add_constraint(constraint)


def _schemas(body: Body, value: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Where a request has schemas, and whether the engine compiles them: its wish for an answer's
    form, and the arguments of its tools, which are compiled where they are held to them."""
    match body:
        case ChatBody() | CompletionBody():
            wanted = value.get("response_format")
            yield "response_format", _inner(wanted, "json_schema", "schema"), True
        case ResponsesBody():
            yield "text.format", _inner(value.get("text"), "format", "schema"), True
        case CountBody():
            wanted = value.get("output_config")
            yield "output_config.format", _inner(wanted, "format", "schema"), True
    yield "structured_outputs.json", _inner(value.get("structured_outputs"), "json"), True
    for number, tool in enumerate(value.get("tools") or []):
        at = f"tools[{number}]"
        function = _inner(tool, "function")
        is_strict = bool(_inner(tool, "strict") or _inner(function, "strict"))
        yield f"{at}.function.parameters", _inner(function, "parameters"), is_strict
        yield f"{at}.parameters", _inner(tool, "parameters"), is_strict
        yield f"{at}.input_schema", _inner(tool, "input_schema"), is_strict


def _inner(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass
class _Work:
    """What the compiler is given by one request."""

    limits: Limits
    ignored: Ignored
    num_chars: int = 0
    num_nodes: int = 0
    num_compiled_nodes: int = 0
    num_counted: int = 0
    num_properties: int = 0
    num_words: int = 0
    num_word_chars: int = 0
    num_pattern_chars: int = 0
    num_atoms: int = 0
    bounds: set[tuple[int, int]] = field(default_factory=set)  # of texts' lengths
    sum_lengths: int = 0

    def add_constraint(self, constraint: dict[str, Any]) -> None:
        """vLLM's own way. Raises InvalidValue."""
        at = "structured_outputs"
        if isinstance(pattern := constraint.get("regex"), str):
            self._add_pattern(pattern, f"{at}.regex")
        if isinstance(words := constraint.get("choice"), list):
            self._add_words(words, f"{at}.choice")
        if isinstance(grammar := constraint.get("grammar"), str):
            if len(grammar) > _MAX_GRAMMAR_CHARS:
                raise InvalidValue(
                    f"Invalid '{at}.grammar': at most {_MAX_GRAMMAR_CHARS} characters are taken.",
                    f"{at}.grammar",
                )
            self._add_atoms(grammar, f"{at}.grammar")

    def add_schema(self, schema: Any, param: str, *, is_compiled: bool) -> None:
        """Raises InvalidValue."""
        if not isinstance(schema, dict):
            raise InvalidValue(f"Invalid '{param}': a JSON schema must be an object.", param)
        if is_compiled:
            self.num_chars += len(msgspec.json.encode(schema))
        if self.num_chars > _MAX_SCHEMA_CHARS:
            raise InvalidValue(
                f"Invalid '{param}': the schemas that constrain the answer may have at most "
                f"{_MAX_SCHEMA_CHARS} bytes in total.",
                param,
            )
        num_before = self.num_properties
        walked: set[int] = set()
        references: list[str] = []
        level: list[dict[str, Any]] = [schema]
        for _ in range(self.limits.max_schema_depth + 1):
            below: list[dict[str, Any]] = []
            for node in level:
                walked.add(id(node))
                self.num_nodes += 1
                self.num_compiled_nodes += is_compiled
                if self.num_nodes > _MAX_NODES or self.num_compiled_nodes > _MAX_COMPILED_NODES:
                    raise InvalidValue(
                        f"Invalid '{param}': the schemas are too large; all of a request may be "
                        f"made of {_MAX_NODES} objects, and those that an answer is held to of "
                        f"{_MAX_COMPILED_NODES}.",
                        param,
                    )
                if isinstance(reference := node.get("$ref"), str):
                    _check_reference(schema, node, param)
                    references.append(reference)
                if is_compiled:
                    self._add_node(node, param)
                if isinstance(properties := node.get("properties"), dict):
                    self.num_properties += len(properties)
                below += _children(node, param)
            num_properties = self.num_properties - num_before
            if num_properties > self.limits.max_schema_properties:
                limit = self.limits.max_schema_properties
                message = f"Invalid '{param}': a schema may have {limit} properties."
                raise InvalidValue(message, param)
            if not below:
                break
            level = below
        else:
            raise InvalidValue(
                f"Invalid '{param}': a schema may be nested at most "
                f"{self.limits.max_schema_depth} levels deep.",
                param,
            )
        for reference in references if is_compiled else ():
            if id(_target(schema, reference)) not in walked:
                raise InvalidValue(
                    f"Invalid '{param}': the $ref {reference[:60]} refers to no schema.", param
                )

    def _add_node(self, node: dict[str, Any], param: str) -> None:
        _check_keywords(node, param)
        if self.num_properties > _MAX_PROPERTIES:
            raise InvalidValue(
                f"Invalid '{param}': the schemas of a request may have at most {_MAX_PROPERTIES} "
                "properties in total.",
                param,
            )
        self._add_lengths(node, param)
        self._add_counts(node, param)
        if "pattern" in node:
            self._add_pattern(node["pattern"], param)
        for pattern in node.get("patternProperties", ()):
            self._add_pattern(pattern, param)
        if "enum" in node:
            self._add_words(node["enum"], param)
        if "const" in node:
            self._add_words([node["const"]], param)

    def _add_lengths(self, node: dict[str, Any], param: str) -> None:
        """A text's, or what there is room for; the longer of the two gives way first."""
        for key in ("maxLength", "minLength"):
            bounds = (node.get("minLength", 0), node.get("maxLength", 0))
            if max(bounds) <= 1 or bounds in self.bounds:
                return
            if self.sum_lengths + max(bounds) <= _MAX_LENGTHS:
                self.bounds.add(bounds)
                self.sum_lengths += max(bounds)
                return
            limit = f"the different lengths of a request may come to {_MAX_LENGTHS} together"
            self._leave_out(node, key, param, limit)

    def _add_counts(self, node: dict[str, Any], param: str) -> None:
        """How many properties an object has, or nothing where there is no room for it."""
        keys = [key for key in ("minProperties", "maxProperties") if key in node]
        num_counted = self.num_counted + len(node.get("properties", ()))
        if keys and num_counted <= _MAX_COUNTED:
            self.num_counted = num_counted
            return
        for key in keys:
            limit = f"it may be said of {_MAX_COUNTED} `properties` in a request"
            self._leave_out(node, key, param, limit)

    def _leave_out(self, node: dict[str, Any], key: str, param: str, limit: str) -> None:
        """Take a bound out, or refuse it where the settings have it so."""
        if key not in node:
            return
        if self.ignored.is_strict:
            raise InvalidValue(f"Invalid '{param}': `{key}` costs too much; {limit}.", param)
        del node[key]
        self.ignored.add(_NUMBER.sub("[]", param), f".{key}")

    def _add_words(self, words: list[Any], param: str) -> None:
        self.num_words += len(words)
        if self.num_words <= _MAX_WORDS:
            self.num_word_chars += sum(_num_chars(word) for word in words)
        if self.num_words > _MAX_WORDS or self.num_word_chars > _MAX_WORD_CHARS:
            raise InvalidValue(
                f"Invalid '{param}': the choices (`enum`, `const`, `choice`) of a request may be "
                f"{_MAX_WORDS}, with {_MAX_WORD_CHARS} characters in total.",
                param,
            )

    def _add_pattern(self, pattern: str, param: str) -> None:
        repeats = _REPEATS.findall(pattern[:_MAX_PATTERN_CHARS])
        if any(int(n[:9] or 0) > _MAX_REPEATS for pair in repeats for n in pair):
            raise InvalidValue(
                f"Invalid '{param}': a pattern may repeat a piece at most {_MAX_REPEATS} times.",
                param,
            )
        self.num_pattern_chars += len(pattern)
        if self.num_pattern_chars > _MAX_PATTERN_CHARS:
            raise InvalidValue(
                f"Invalid '{param}': the patterns of a request may have at most "
                f"{_MAX_PATTERN_CHARS} characters in total.",
                param,
            )
        self._add_atoms(pattern, param)

    def _add_atoms(self, pattern: str, param: str) -> None:
        self.num_atoms += num_repeated(pattern)
        if self.num_atoms > _MAX_ATOMS:
            raise InvalidValue(
                f"Invalid '{param}': the patterns of a request, with repetitions written out, may "
                f"have {_MAX_ATOMS} pieces.",
                param,
            )


def _num_chars(word: Any) -> int:
    return len(word) if isinstance(word, str) else len(str(word)[:_MAX_WORD_CHARS])


def _children(node: dict[str, Any], param: str) -> Iterator[dict[str, Any]]:
    """The schemas right under one, and whatever else may be referred to as one."""
    for key, child in node.items():
        is_named = key in _NAMED_SCHEMAS and isinstance(child, dict)
        is_listed = key in _LISTED_SCHEMAS and isinstance(child, list)
        if key in _VALUES:
            continue
        inside = child.values() if is_named else child if isinstance(child, list) else [child]
        for schema in inside:
            if isinstance(schema, dict):
                yield schema
            elif (is_named or is_listed) and not isinstance(schema, bool):
                raise InvalidValue(f"Invalid '{param}': in `{key}`, each must be a schema.", param)


def _check_keywords(node: dict[str, Any], param: str) -> None:
    """The kinds of what stands in one schema: the compiler fails on wrong ones."""
    for key in _COUNTS:
        count = node.get(key, 0)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_COUNT:
            raise _wrong(param, key, f"a whole number from 0 to {_MAX_COUNT}")
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
        if low in node and high in node and node[low] > node[high]:
            raise _wrong(param, low, f"at most `{high}`")
    for key in _NUMBERS:
        number = node.get(key, 0)
        if isinstance(number, bool) and key.startswith("exclusive"):
            continue  # as older drafts have it
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or abs(number) >= 2**63:
            raise _wrong(param, key, "a number within 64 bits")
    kinds = node.get("type", "string")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in _TYPES:
            raise _wrong(param, "type", f"one of {', '.join(_TYPES)}")
    for key in _NAMED_SCHEMAS:
        if not isinstance(node.get(key, {}), dict):
            raise _wrong(param, key, "an object of schemas")
    for key in ("enum", "required", *_LISTED_SCHEMAS):
        if not isinstance(node.get(key, []), list) or (node.get(key) == [] and key != "required"):
            raise _wrong(param, key, "a list, not empty")
    for key in ("pattern", "$ref"):
        if not isinstance(node.get(key, ""), str):
            raise _wrong(param, key, "a text")


def _wrong(param: str, key: str, expected: str) -> InvalidValue:
    return InvalidValue(f"Invalid '{param}': `{key}` must be {expected}.", param)


def _check_reference(schema: dict[str, Any], node: Any, param: str) -> None:
    """(1) A reference stays inside. (2) It does not lead, by references alone, to itself: a tree
    may hold trees, and a schema that says only "the same as I am" describes nothing."""
    seen: set[str] = set()
    while isinstance(node, dict) and isinstance(reference := node.get("$ref"), str):
        if reference != "#" and not reference.startswith("#/"):  # (1)
            raise InvalidValue(f"Invalid '{param}': a $ref must begin with #/.", param)
        if reference in seen:  # (2)
            raise InvalidValue(f"Invalid '{param}': a $ref refers to itself.", param)
        seen.add(reference)
        node = _target(schema, reference)


def _target(schema: dict[str, Any], reference: str) -> Any:
    target: Any = schema
    for step in reference.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(key)] if key.isdecimal() and int(key) < len(target) else None
        else:
            target = target.get(key) if isinstance(target, dict) else None
    return target


def num_repeated(pattern: str) -> int:
    """The pieces of a pattern with each `{m,n}` written out, capped at a million; one pass.

    Alternatives and classes count as they stand. What is no valid pattern counts somehow: the
    compiler refuses it.
    """
    cap, opened = 1_000_000, [[0, 0]]  # a group's pieces, and those of its last piece
    at, end = 0, len(pattern)
    while at < end:
        char = pattern[at]
        at += 1
        if char == "(":
            opened.append([0, 0])
        elif char == ")" and len(opened) > 1:
            inner = sum(opened.pop())
            opened[-1] = [min(cap, sum(opened[-1])), max(1, inner)]
        elif char == "{":
            times, at = _repetition(pattern, at)
            opened[-1][1] = min(cap, opened[-1][1] * times)
        elif char not in "*+?|^$":
            if char == "\\":
                at += 1
            elif char == "[":
                at = _after_class(pattern, at)
            opened[-1] = [min(cap, sum(opened[-1])), 1]
    return min(cap, sum(map(sum, opened)))


def _repetition(pattern: str, at: int) -> tuple[int, int]:
    """The greater number of the `{m,n}` whose brace ends before `at`, and where it ends."""
    end = at
    while end < len(pattern) and end < at + 24 and pattern[end] in "0123456789, ":
        end += 1
    numbers = [int(n[:9]) for n in pattern[at:end].replace(" ", "").split(",") if n]
    if end < len(pattern) and pattern[end] == "}" and numbers:
        return max(1, *numbers), end + 1
    return 1, at  # a brace that is meant as one, or too many digits: it is refused as a pattern


def _after_class(pattern: str, at: int) -> int:
    """Where the class ends whose bracket ends before `at`."""
    first = at = at + pattern.startswith("^", at)
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
