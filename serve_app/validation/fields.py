"""Checks a request's fields, and its counts against the limits."""

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

# Parts of a pydantic location that are no part of the request: branches of a union, validators.
_BRANCHES = frozenset(
    {"str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float"}
    | {"function-after", "function-before"}
)


def check_fields(call: Call, value: dict[str, Any]) -> Body:
    """The request's fields, all allowed and of the right type.

    Raises:
        InvalidRequest: names the first field that is wrong, those that are refused before others.
    """
    fields, refused = call.body.model_fields, call.refused
    for name in value:
        if name in refused and name not in fields:
            raise RefusedField(f"`{name}` is not supported here: {refused[name]}.", name)
    for name, given in value.items():
        if name not in fields:
            raise UnknownField(f"Unknown parameter: '{name[:100]}'.", name[:100])
        if given is None:  # `normalize` has dropped those that may be left out
            raise MissingField(f"Missing required parameter: '{name}'.", name)
    try:
        return call.body.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc) from exc


def check_counts(body: Body, limits: Limits) -> None:
    """How many of each thing one request may ask for. Raises InvalidValue."""
    get = body.model_dump(include=set(_COUNTS) & set(type(body).model_fields))
    num_choices = body.num_choices
    if num_choices > limits.max_choices:
        name = "n" if getattr(body, "n", None) else "prompt"
        raise InvalidValue(
            f"Invalid 'n': {num_choices} answers (`n` for each prompt) are requested; "
            f"at most {limits.max_choices} are allowed.",
            name,
        )
    if body.num_inputs > limits.max_inputs:
        raise InvalidValue(
            f"Invalid 'input': {body.num_inputs} inputs; at most {limits.max_inputs} are allowed.",
            "input",
        )
    for name, value in get.items():
        limit = getattr(limits, _COUNTS[name])
        count = len(value) if isinstance(value, list) else value
        if isinstance(count, int) and not isinstance(count, bool) and count > limit:
            raise InvalidValue(f"Invalid '{name}': at most {limit}, but it is {count}.", name)


def lower_length(value: dict[str, Any], spec: ModelSpec) -> bool:
    """Lower the length that is asked for to what the model takes at all, one token of prompt
    apart; whether it was. The engine lowers it further to what the prompt leaves, and says `length`
    where that was too little."""
    limit, has_changed = spec.engine.max_model_len - 1, False
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in value and value[name] > limit:
            value[name], has_changed = limit, True
    return has_changed


def check_sizes(value: Any) -> None:
    """No object of a request has more fields than any real one. Raises InvalidValue."""
    level = [value]
    while level:
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if len(node) > _MAX_FIELDS:
                    raise InvalidValue(f"An object of the body has more than {_MAX_FIELDS} fields.")
                below += [child for child in node.values() if isinstance(child, dict | list)]
            else:
                below += [child for child in node if isinstance(child, dict | list)]
        level = below


def check_tools(body: Body, value: dict[str, Any], spec: ModelSpec) -> None:
    """Whether the model calls tools, and such ones. Raises InvalidValue."""
    tools = value.get("tools") or []
    calls_tools = isinstance(body, ChatBody | ResponsesBody | MessagesBody)
    if tools and calls_tools and spec.engine.tool_call_parser is None:
        raise InvalidValue(f"{spec.name} does not support tools.", "tools")
    wanted = _TOOL_TYPES.get(type(body), ())
    for number, tool in enumerate(tools if wanted else []):
        kind = tool.get("type", wanted[0])
        if kind not in wanted:
            raise InvalidValue(
                f"Invalid 'tools[{number}].type': no `{str(kind)[:60]}` tools are not supported; "
                f"{wanted[0]} tools, which the client runs, are.",
                f"tools[{number}].type",
            )
    _check_choice(value.get("tool_choice"), tools, body)


def _check_choice(choice: Any, tools: list[dict[str, Any]], body: Body) -> None:
    """A call that is asked for can be made. Left to the model instead, it would be answered with a
    text, in which the program looks for the call in vain."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in (None, "none", "auto"):
        return
    if isinstance(choice, dict) and not isinstance(body, CountBody) and kind != "function":
        raise InvalidValue(
            "Invalid 'tool_choice': supported are none, auto, required, and one function by its "
            "name.",
            "tool_choice",
        )
    if not tools:
        raise InvalidValue(
            "Invalid 'tool_choice': it requires a tool call, but `tools` has no tool to call.",
            "tool_choice",
        )
    if isinstance(choice, dict) and kind in ("function", "tool"):
        names = [_name(tool) for tool in tools]
        if _name(choice) not in names:
            known = ", ".join(map(str, names))[:200]
            raise InvalidValue(
                f"Invalid 'tool_choice': it must name one of the tools to call: {known}.",
                "tool_choice",
            )


def _name(tool: dict[str, Any]) -> Any:
    """Of a tool, or of the one that is chosen; chat has it in `function`."""
    function = tool.get("function")
    return (function if isinstance(function, dict) else tool).get("name")


def check_vision(pictures: list[Picture], spec: ModelSpec) -> None:
    """Whether the model sees, and so many pictures. Raises InvalidImage."""
    if not pictures:
        return
    first, limit = pictures[0].param, spec.engine.max_images
    if not spec.vision:
        raise InvalidImage(f"{spec.name} does not accept pictures.", first)
    if len(pictures) > limit:
        raise InvalidImage(
            f"{len(pictures)} pictures were sent; {spec.name} accepts at most {limit} a request.",
            first,
        )


_TOOL_TYPES: dict[type[Body], tuple[str, ...]] = {
    ChatBody: ("function",),
    MessagesBody: ("custom",),
    CountBody: ("custom",),
}
_MAX_FIELDS = 1_024  # `logit_bias` is the largest real object: 300 at OpenAI
# Field -> the limit it has; a number, or the length of a list.
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
    """The first problem, as OpenAI words it; of a union's branches the one that got furthest."""
    problems = exc.errors(include_url=False, include_context=True, include_input=False)
    first = problems[0]
    here = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
    is_union = len(here) > 1 and len({len(p["loc"]) for p in here}) > 1
    problem = max(here, key=lambda p: len(p["loc"])) if is_union else first
    name = field_name(problem["loc"])
    match problem["type"]:
        case "missing":
            return MissingField(f"Missing required parameter: '{name}'.", name)
        case "extra_forbidden":
            return UnknownField(f"Unknown parameter: '{name}'.", name)
        case kind if kind.endswith("_type") or kind.endswith("_parsing"):
            return InvalidType(f"Invalid type for '{name}': {_expected(problem)}.", name)
    if not name:  # of the fields together
        return InvalidValue(f"{str(problem['ctx']['error']).capitalize()}.")
    if name == "store":
        return InvalidValue("`store` must be false or omitted: answers are not stored.", name)
    if name == "background":
        return InvalidValue("`background` is not supported: answers are not stored.", name)
    return InvalidValue(f"Invalid '{name}': {_expected(problem)}.", name)


def _expected(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"])
    if message.startswith("Value error, "):
        return f"it must be {message.removeprefix('Value error, ')}"[:200]
    return (message[0].lower() + message[1:])[:200]


def field_name(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, of pydantic's location."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in _BRANCHES and "[" not in part:
            name += f".{part}" if name else part
    return name[:100]
