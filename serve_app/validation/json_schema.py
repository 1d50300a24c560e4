"""Checks schemas, patterns and choices before the engine compiles them into a grammar.

A few bytes can keep the engine's compiler (xgrammar) busy for minutes, which delays the tokens of
other requests. So the limits below hold for all schemas of a request together, and bound whatever
takes the compiler time; the worst case is about 7 s. CPU seconds, measured with xgrammar 0.2 and
the demo's vocabulary of 49,152 tokens on one core:

| | |
|---|---|
| `maxLength` 20, 64, 128, 200, 100,000 | 0.15, 0.6, 1.25, 2.05, 2.05 |
| 20 strings of one `maxLength`; two of 200 and 201; eight of 30 to 37 | as one string; 3.8; 2.3 |
| `minLength` 20, 128, 4,096 | 0.15, 0.65, 0.65 |
| `minItems`, `maxItems` up to 100,000, nested three deep | 0.00 |
| `minProperties` 12, 25, 50, 100 with twice as many `properties` | 0.03, 0.12, 1.1, 18.6 |
| `minProperties` 1 in 4, 40 objects with 25 `properties` | 0.16, 9.2 |
| 100, 300 properties, each of 28 nested lists | 1.2, 9.1 |
| property names with 25,000, 250,000 characters in total | 0.15, 1.9 |
| `enum` of 2,000, 5,000, 20,000 words | 0.05, 0.12, 27 |
| `enum` words with 20,000, 100,000 characters in total | 0.8, 2.2 |
| a pattern of 500, 2,000 character classes | 0.5, 1.9 |
| patterns `.{0,100}`, `([a-z]{1,20} ){1,20}`, three levels of the latter | 0.9, 0.03, 51 |
| 300 properties in one object, 1,000 in a hundred objects | 0.3, 0.25 |

Bounds of lengths are common (pydantic's `max_length=4096`), and without them a schema only allows
more. So bounds that cost too much are dropped and named in `X-Ignored-Fields`, not refused.
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

_MAX_NODES = 20_000  # objects in all schemas of a request
_MAX_COMPILED_NODES = 3_000  # those of them that the engine compiles
_MAX_PROPERTIES = 1_000  # in all schemas of a request
_MAX_WORDS, _MAX_WORD_CHARS = 2_000, 20_000  # in `enum`, `const` and `choice`
_MAX_PATTERN_CHARS = 4_000
_MAX_REPEATS = 128  # in one `{m,n}` of a pattern; the compiler accepts no more
_REPEATS = re.compile(r"\{(\d*)(?:, *(\d*))?\}")
_MAX_ATOMS = 400  # in all patterns, with their repetitions written out
_NUMBER = re.compile(r"\[\d+\]")
_MAX_GRAMMAR_CHARS = 10_000
_MAX_SCHEMA_CHARS = 100_000  # Claude Code's 25 tools have 74,000
_MAX_LENGTHS = 200  # sum of the different bounds of string lengths
_MAX_COUNTED = 50  # `properties` of objects that have `minProperties` or `maxProperties`
_MAX_COUNT = 2**31 - 1

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_VALUES = (
    "enum",
    "const",
    "default",
    "example",
    "examples",
)  # their contents are values, not schemas


def check_schemas(body: Body, value: dict[str, Any], limits: Limits, ignored: Ignored) -> None:
    """Check everything that constrains the form of the answer. Raises InvalidValue.

    Drops bounds that cost too much from `value`, and adds them to `ignored`.
    """
    load = _CompilerLoad(limits, ignored)
    for param, schema, is_compiled in _schemas(body, value):
        if schema is not None:
            load.add_schema(schema, param, is_compiled=is_compiled)
    constraint = value.get("structured_outputs")
    if isinstance(constraint, dict):
        load.add_constraint(constraint)


def _schemas(body: Body, value: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield each schema of a request, with its path and whether the engine compiles it.

    The engine compiles the schema of the answer, and the parameters of tools that are `strict`.
    """
    match body:
        case ChatBody() | CompletionBody():
            answer_format = value.get("response_format")
            yield "response_format", _inner(answer_format, "json_schema", "schema"), True
        case ResponsesBody():
            yield "text.format", _inner(value.get("text"), "format", "schema"), True
        case CountBody():
            config = value.get("output_config")
            yield "output_config.format", _inner(config, "format", "schema"), True
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
class _CompilerLoad:
    """Counts what one request gives the compiler, and refuses what exceeds a limit."""

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
    bounds: set[tuple[int, int]] = field(default_factory=set)  # (minLength, maxLength) of strings
    sum_lengths: int = 0

    def add_constraint(self, constraint: dict[str, Any]) -> None:
        """Add vLLM's own field `structured_outputs`. Raises InvalidValue."""
        at = "structured_outputs"
        if isinstance(pattern := constraint.get("regex"), str):
            self._add_pattern(pattern, f"{at}.regex")
        if isinstance(words := constraint.get("choice"), list):
            self._add_words(words, f"{at}.choice")
        if isinstance(grammar := constraint.get("grammar"), str):
            if len(grammar) > _MAX_GRAMMAR_CHARS:
                raise InvalidValue(
                    f"Invalid '{at}.grammar': it may have at most {_MAX_GRAMMAR_CHARS} characters.",
                    f"{at}.grammar",
                )
            self._add_atoms(grammar, f"{at}.grammar")

    def add_schema(self, schema: Any, param: str, *, is_compiled: bool) -> None:
        """Add one schema, level by level. Raises InvalidValue."""
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
                        f"Invalid '{param}': the schemas of a request may have at most "
                        f"{_MAX_NODES} objects in total, and those that constrain the answer "
                        f"at most {_MAX_COMPILED_NODES}.",
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
                message = f"Invalid '{param}': a schema may have at most {limit} properties."
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
                    f"Invalid '{param}': `$ref` {reference[:60]} does not lead to a schema.", param
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
        """Add the bounds of a string's length; if over the limit, drop the greater one first."""
        for key in ("maxLength", "minLength"):
            bounds = (node.get("minLength", 0), node.get("maxLength", 0))
            if max(bounds) <= 1 or bounds in self.bounds:
                return
            if self.sum_lengths + max(bounds) <= _MAX_LENGTHS:
                self.bounds.add(bounds)
                self.sum_lengths += max(bounds)
                return
            limit = f"the different lengths in a request may add up to at most {_MAX_LENGTHS}"
            self._leave_out(node, key, param, limit)

    def _add_counts(self, node: dict[str, Any], param: str) -> None:
        """Add the bounds of the number of properties, or drop them if they exceed the limit."""
        keys = [key for key in ("minProperties", "maxProperties") if key in node]
        num_counted = self.num_counted + len(node.get("properties", ()))
        if keys and num_counted <= _MAX_COUNTED:
            self.num_counted = num_counted
            return
        for key in keys:
            limit = f"the objects with it may have at most {_MAX_COUNTED} `properties` in total"
            self._leave_out(node, key, param, limit)

    def _leave_out(self, node: dict[str, Any], key: str, param: str, limit: str) -> None:
        """Drop a bound, or refuse it if the settings say `unknown_fields: refuse`."""
        if key not in node:
            return
        if self.ignored.is_strict:
            raise InvalidValue(
                f"Invalid '{param}': `{key}` takes too long to compile; {limit}.", param
            )
        del node[key]
        self.ignored.add(_NUMBER.sub("[]", param), f".{key}")

    def _add_words(self, words: list[Any], param: str) -> None:
        self.num_words += len(words)
        if self.num_words <= _MAX_WORDS:
            self.num_word_chars += sum(_num_chars(word) for word in words)
        if self.num_words > _MAX_WORDS or self.num_word_chars > _MAX_WORD_CHARS:
            raise InvalidValue(
                f"Invalid '{param}': a request may have at most {_MAX_WORDS} choices (`enum`, "
                f"`const`, `choice`), with at most {_MAX_WORD_CHARS} characters in total.",
                param,
            )

    def _add_pattern(self, pattern: str, param: str) -> None:
        repeats = _REPEATS.findall(pattern[:_MAX_PATTERN_CHARS])
        if any(int(n[:9] or 0) > _MAX_REPEATS for pair in repeats for n in pair):
            raise InvalidValue(
                f"Invalid '{param}': the numbers in `{{m,n}}` of a pattern may be at most "
                f"{_MAX_REPEATS}.",
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
                f"Invalid '{param}': the patterns of a request may have at most {_MAX_ATOMS} "
                "elements in total, with repetitions written out.",
                param,
            )


def _num_chars(word: Any) -> int:
    return len(word) if isinstance(word, str) else len(str(word)[:_MAX_WORD_CHARS])


def _children(node: dict[str, Any], param: str) -> Iterator[dict[str, Any]]:
    """Yield the schemas directly under `node`, and other objects that a `$ref` may point to."""
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
                raise InvalidValue(
                    f"Invalid '{param}': each entry of `{key}` must be a schema.", param
                )


def _check_keywords(node: dict[str, Any], param: str) -> None:
    """Check the types of one schema's keywords; wrong ones make the compiler fail."""
    for key in _COUNTS:
        count = node.get(key, 0)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_COUNT:
            raise _wrong_keyword(param, key, f"an integer from 0 to {_MAX_COUNT}")
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
        if low in node and high in node and node[low] > node[high]:
            raise _wrong_keyword(param, low, f"at most `{high}`")
    for key in _NUMBERS:
        number = node.get(key, 0)
        if isinstance(number, bool) and key.startswith("exclusive"):
            continue  # older drafts of JSON Schema have a boolean here
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or abs(number) >= 2**63:
            raise _wrong_keyword(param, key, "a finite number that fits 64 bits")
    kinds = node.get("type", "string")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in _TYPES:
            raise _wrong_keyword(param, "type", f"one of {', '.join(_TYPES)}")
    for key in _NAMED_SCHEMAS:
        if not isinstance(node.get(key, {}), dict):
            raise _wrong_keyword(param, key, "an object of schemas")
    for key in ("enum", "required", *_LISTED_SCHEMAS):
        if not isinstance(node.get(key, []), list) or (node.get(key) == [] and key != "required"):
            allowed = "an array" if key == "required" else "a non-empty array"
            raise _wrong_keyword(param, key, allowed)
    for key in ("pattern", "$ref"):
        if not isinstance(node.get(key, ""), str):
            raise _wrong_keyword(param, key, "a string")


def _wrong_keyword(param: str, key: str, allowed: str) -> InvalidValue:
    return InvalidValue(f"Invalid '{param}': `{key}` must be {allowed}.", param)


def _check_reference(schema: dict[str, Any], node: Any, param: str) -> None:
    """Check a `$ref`.

    (1) It stays inside the schema. (2) It does not lead to itself through `$ref`s alone: recursive
    schemas are fine, but a schema that only refers to itself describes nothing.
    """
    seen: set[str] = set()
    while isinstance(node, dict) and isinstance(reference := node.get("$ref"), str):
        if reference != "#" and not reference.startswith("#/"):  # (1)
            raise InvalidValue(f"Invalid '{param}': a `$ref` must start with `#/`.", param)
        if reference in seen:  # (2)
            raise InvalidValue(f"Invalid '{param}': a `$ref` must not refer to itself.", param)
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
    """Count the elements of a pattern with each `{m,n}` written out, at most a million; one pass.

    A character class is one element, and alternatives are added up. The count of an invalid pattern
    does not matter: the compiler refuses it.
    """
    cap, opened = (
        1_000_000,
        [[0, 0]],
    )  # each open group: its elements so far, and those of its last one
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
    """Return the greater number of the `{m,n}` whose brace opens before `at`, and the end of it."""
    end = at
    while end < len(pattern) and end < at + 24 and pattern[end] in "0123456789, ":
        end += 1
    numbers = [int(n[:9]) for n in pattern[at:end].replace(" ", "").split(",") if n]
    if end < len(pattern) and pattern[end] == "}" and numbers:
        return max(1, *numbers), end + 1
    return 1, at  # a literal brace; or too many digits, which the compiler refuses


def _after_class(pattern: str, at: int) -> int:
    """Return the end of the character class whose bracket opens before `at`."""
    first = at = at + pattern.startswith("^", at)
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
