"""Checks the fields of a request, and its counts against the limits."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from deployments.settings import Limits, ModelSpec
from serve_app.protocol.anthropic import CountBody, MessagesBody
from serve_app.protocol.calls import Call
from serve_app.protocol.errors import (
    InvalidImage,
    InvalidRequest,
    InvalidType,
    InvalidValue,
    MissingField,
    RefusedField,
    UnknownField,
)
from serve_app.protocol.fields import Body
from serve_app.protocol.openai import ChatBody, ResponsesBody
from serve_app.validation.message_content import Picture

# Parts of a pydantic location that are not fields: names of union branches and validators.
_BRANCHES = frozenset(
    {"str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float"}
    | {"function-after", "function-before"}
)


def check_fields(call: Call, value: dict[str, Any]) -> Body:
    """Return the body; all its fields are allowed and have the right type.

    Raises:
        InvalidRequest: names the first wrong field; refused fields come first.
    """
    fields, refused = call.body.model_fields, call.refused
    for name in value:
        if name in refused and name not in fields:
            raise RefusedField(f"Unsupported parameter: '{name}'; {refused[name]}.", name)
    for name, given in value.items():
        if name not in fields:
            raise UnknownField(f"Unknown parameter: '{name[:100]}'.", name[:100])
        if given is None:  # `normalize` has dropped the nulls of optional fields
            raise MissingField(f"Missing required parameter: '{name}'.", name)
    try:
        return call.body.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc) from exc


def check_counts(body: Body, limits: Limits) -> None:
    """Check the counts that `limits` bounds. Raises InvalidValue."""
    counted = body.model_dump(include=set(_COUNTS) & set(type(body).model_fields))
    num_choices = body.num_choices
    if num_choices > limits.max_choices:
        name = "n" if getattr(body, "n", None) else "prompt"
        raise InvalidValue(
            f"Invalid '{name}': the request asks for {num_choices} answers (`n` for each prompt); "
            f"at most {limits.max_choices} are allowed.",
            name,
        )
    if body.num_inputs > limits.max_inputs:
        raise InvalidValue(
            f"Invalid 'input': it has {body.num_inputs} texts; at most {limits.max_inputs} are "
            "allowed.",
            "input",
        )
    for name, value in counted.items():
        limit = getattr(limits, _COUNTS[name])
        count = len(value) if isinstance(value, list) else value
        if isinstance(count, int) and not isinstance(count, bool) and count > limit:
            raise InvalidValue(_too_many(name, value, limit), name)


def _too_many(name: str, value: Any, limit: int) -> str:
    if isinstance(value, list):
        return f"Invalid '{name}': it has {len(value)} items; at most {limit} are allowed."
    return f"Invalid '{name}': it is {value}; at most {limit} is allowed."


def lower_length(value: dict[str, Any], spec: ModelSpec) -> bool:
    """Lower the requested answer length to the model's context, less one token for the prompt.

    Returns whether it lowered a field. The engine lowers the length further to the room that the
    prompt leaves, and finishes with `length` if the answer does not fit.
    """
    limit, has_changed = spec.engine.max_model_len - 1, False
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in value and value[name] > limit:
            value[name], has_changed = limit, True
    return has_changed


def check_sizes(value: Any) -> None:
    """Check that no object in the body has more than `_MAX_FIELDS` fields. Raises InvalidValue."""
    level = [value]
    while level:
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if len(node) > _MAX_FIELDS:
                    raise InvalidValue(f"An object in the body has more than {_MAX_FIELDS} fields.")
                below += [child for child in node.values() if isinstance(child, dict | list)]
            else:
                below += [child for child in node if isinstance(child, dict | list)]
        level = below


def check_tools(body: Body, value: dict[str, Any], spec: ModelSpec) -> None:
    """Check that the model can call tools, and these types of tools. Raises InvalidValue."""
    tools = value.get("tools") or []
    calls_tools = isinstance(body, ChatBody | ResponsesBody | MessagesBody)
    if tools and calls_tools and spec.engine.tool_call_parser is None:
        raise InvalidValue(f"Invalid 'tools': {spec.name} does not support tools.", "tools")
    supported = _TOOL_TYPES.get(type(body))
    for number, tool in enumerate(tools if supported else []):
        kind = tool.get("type", supported)
        if kind != supported:
            raise InvalidValue(
                f"Invalid 'tools[{number}].type': `{str(kind)[:60]}` tools are not supported; "
                f"only `{supported}` tools, which the client runs, are.",
                f"tools[{number}].type",
            )
    _check_choice(value.get("tool_choice"), tools, body)


def _check_choice(choice: Any, tools: list[dict[str, Any]], body: Body) -> None:
    """Check that a required tool call is possible. Raises InvalidValue.

    Otherwise the model would answer with text, and the program would not find the call it expects.
    """
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in (None, "none", "auto"):
        return
    if isinstance(choice, dict) and not isinstance(body, CountBody) and kind != "function":
        raise InvalidValue(
            "Invalid 'tool_choice': it must be `none`, `auto`, `required`, or an object of type "
            "`function` that names one function.",
            "tool_choice",
        )
    if not tools:
        raise InvalidValue(
            "Invalid 'tool_choice': it requires a tool call, but `tools` is empty.",
            "tool_choice",
        )
    if isinstance(choice, dict) and kind in ("function", "tool"):
        names = [_name(tool) for tool in tools]
        if _name(choice) not in names:
            known = ", ".join(map(str, names))[:200]
            raise InvalidValue(
                f"Invalid 'tool_choice': it must name one of the request's tools: {known}.",
                "tool_choice",
            )


def _name(tool: dict[str, Any]) -> Any:
    """Return the name in a tool or a `tool_choice`; chat has it inside `function`."""
    function = tool.get("function")
    return (function if isinstance(function, dict) else tool).get("name")


def check_vision(pictures: list[Picture], spec: ModelSpec) -> None:
    """Check that the model accepts pictures, and as many as were sent. Raises InvalidImage."""
    if not pictures:
        return
    first, limit = pictures[0].param, spec.engine.max_images
    if not spec.vision:
        raise InvalidImage(f"{spec.name} does not accept pictures.", first)
    if len(pictures) > limit:
        raise InvalidImage(
            f"The request has {len(pictures)} pictures; {spec.name} accepts at most {limit}.",
            first,
        )


_TOOL_TYPES: dict[type[Body], str] = {
    ChatBody: "function",
    MessagesBody: "custom",
    CountBody: "custom",
}
_MAX_FIELDS = 1_024  # the largest object that clients send is `logit_bias`: OpenAI allows 300
# Field (a number or a list) -> the setting that limits the number or the length of the list.
_COUNTS = {
    "logprobs": "max_logprobs",
    "top_logprobs": "max_logprobs",
    "prompt_logprobs": "max_logprobs",
    "logprob_token_ids": "max_logprobs",
    "stop": "max_stop",
    "stop_sequences": "max_stop",
    "tools": "max_tools",
}


def _invalid(exc: ValidationError) -> InvalidRequest:
    """Return the first problem, in OpenAI's words; of a union, the branch that got furthest."""
    problems = exc.errors(include_url=False, include_context=True, include_input=False)
    first = problems[0]
    same_field = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
    is_union = len({len(p["loc"]) for p in same_field}) > 1
    problem = max(same_field, key=lambda p: len(p["loc"])) if is_union else first
    name = field_name(problem["loc"])
    match problem["type"]:
        case "missing":
            return MissingField(f"Missing required parameter: '{name}'.", name)
        case "extra_forbidden":
            return UnknownField(f"Unknown parameter: '{name}'.", name)
        case kind if kind.endswith("_type") or kind.endswith("_parsing"):
            return InvalidType(f"Invalid type for '{name}': {_expected(problem)}.", name)
    if not name:  # a rule on several fields
        return InvalidValue(f"{str(problem['ctx']['error']).capitalize()}.")
    if name == "store":
        return InvalidValue(
            "Invalid 'store': it must be false or omitted; answers are not stored.", name
        )
    if name == "background":
        return InvalidValue(
            "Invalid 'background': it must be false or omitted; answers are not stored.", name
        )
    return InvalidValue(f"Invalid '{name}': {_expected(problem)}.", name)


def _expected(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"])
    if message.startswith("Value error, "):
        return f"it must be {message.removeprefix('Value error, ')}"[:200]
    return (message[0].lower() + message[1:])[:200]


def field_name(location: tuple[int | str, ...]) -> str:
    """Turn pydantic's location into a name such as `messages[0].content`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in _BRANCHES and "[" not in part:
            name += f".{part}" if name else part
    return name[:100]
