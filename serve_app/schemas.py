"""JSON schemas from clients, before the engine makes grammars of them.

Measured with the engine's compiler (xgrammar): 300 properties take 0.4 s, 1,000 take 13 s, 3,000
more than a minute; a reference to an address elsewhere is taken and means anything at all.
"""

from typing import Any

from serve_app.errors import InvalidValue
from serve_app.settings import Limits
from serve_app.surface import (
    Body,
    ChatBody,
    CompletionBody,
    CountBody,
    ResponsesBody,
)

_MAX_NODES = 20_000  # of one schema: objects and lists; more than any within the other limits


def check_schemas(body: Body, value: dict[str, Any], limits: Limits) -> None:
    """All schemas of a request. Raises InvalidValue."""
    for param, schema in _schemas(body, value):
        if schema is not None:
            _check(schema, param, limits)


def _schemas(body: Body, value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Where a request has schemas: its wish for an answer's form, and its tools' arguments."""
    found: list[tuple[str, Any]] = []
    match body:
        case ChatBody() | CompletionBody():
            wanted = value.get("response_format")
            found.append(("response_format", _inner(wanted, "json_schema", "schema")))
        case ResponsesBody():
            found.append(("text.format", _inner(value.get("text"), "format", "schema")))
        case CountBody():
            wanted = value.get("output_config")
            found.append(("output_config.format", _inner(wanted, "format", "schema")))
    found.append(("structured_outputs.json", _inner(value.get("structured_outputs"), "json")))
    for number, tool in enumerate(value.get("tools") or []):
        at = f"tools[{number}]"
        found.append((f"{at}.function.parameters", _inner(tool, "function", "parameters")))
        found.append((f"{at}.parameters", _inner(tool, "parameters")))
        found.append((f"{at}.input_schema", _inner(tool, "input_schema")))
    return found


def _inner(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check(schema: Any, param: str, limits: Limits) -> None:
    if not isinstance(schema, dict):
        raise InvalidValue(f"Invalid '{param}': a JSON schema must be an object.", param)
    num_properties = num_nodes = 0
    level: list[Any] = [schema]
    for _ in range(limits.max_schema_depth + 1):
        below: list[Any] = []
        for node in level:
            num_nodes += 1
            if isinstance(node, dict):
                properties = node.get("properties")
                num_properties += len(properties) if isinstance(properties, dict) else 0
                _check_reference(schema, node, param)
                below += [child for child in node.values() if isinstance(child, dict | list)]
            else:
                below += [child for child in node if isinstance(child, dict | list)]
        if num_properties > limits.max_schema_properties or num_nodes > _MAX_NODES:
            raise InvalidValue(
                f"Invalid '{param}': a schema may have {limits.max_schema_properties} properties.",
                param,
            )
        if not below:
            return
        level = below
    raise InvalidValue(
        f"Invalid '{param}': a schema may be nested {limits.max_schema_depth} levels deep.", param
    )


def _check_reference(schema: dict[str, Any], node: dict[str, Any], param: str) -> None:
    """(1) A reference stays inside. (2) It does not lead, by references alone, to itself: a tree
    may hold trees, and a schema that says only "the same as I am" describes nothing."""
    seen: set[str] = set()
    while isinstance(node, dict) and isinstance(reference := node.get("$ref"), str):
        if reference != "#" and not reference.startswith("#/"):  # (1)
            raise InvalidValue(f"Invalid '{param}': a $ref must begin with #/.", param)
        if reference in seen:  # (2)
            raise InvalidValue(f"Invalid '{param}': a $ref leads to itself.", param)
        seen.add(reference)
        node = _inner(schema, *reference.split("/")[1:])
