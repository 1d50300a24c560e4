"""Leaves out the fields that ask for nothing or that no engine here knows.

Programs send more than a model needs: nulls for what they leave open, fields of other servers, and
their own records in messages that they send back. (1) A null asks for nothing, and neither does a
refused field at the value that it has by itself. (2) What no engine here knows is left out, and
the answer names it in `X-Ignored-Fields`; where the settings say so, it is refused instead, later.
(3) A form that may be left out is supplied.

The request is changed in place, and encoded again before it is sent on.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from serve_app.protocol.anthropic import CountBody
from serve_app.protocol.calls import Call
from serve_app.protocol.fields import ChatTemplateArguments
from serve_app.protocol.openai import (
    ChatBody,
    EmbeddingsBody,
    ResponseFormat,
    ResponsesBody,
    StreamOptions,
    TokenizeBody,
)
from serve_app.protocol.refused import REFUSED
from serve_app.validation import message_content

_MAX_NAMES = 16  # in the header
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")
# The values at which programs send fields that ask for nothing then.
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": ({},),
    "tools": ([],),
    "background": (False,),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "mcp_servers": ([],),
    "suffix": ("",),
    "use_beam_search": (False,),
    "watermarking": (False,),
}
# The models do not think apart from their answer: left out also where unknown fields are refused.
_NEEDLESS = {"thinking", "reasoning_effort", "thinking_token_budget"}
# Fields of a request that are objects, and the fields that those may have.
_OBJECTS = {
    "stream_options": StreamOptions.model_fields,
    "chat_template_kwargs": ChatTemplateArguments.model_fields,
    "response_format": ResponseFormat.model_fields,
}
_MODELLED = (ChatBody, TokenizeBody, EmbeddingsBody)


class Ignored:
    """The fields that were left out, each named once, without the numbers of its places.

    With `is_strict` unknown fields stay, to be refused.
    """

    def __init__(self, is_strict: bool) -> None:
        self.is_strict = is_strict
        self._names: dict[str, None] = {}
        self.has_changed = False  # something was left out or supplied, named or not

    def add(self, at: str, name: str) -> None:
        self.has_changed = True
        self._names.setdefault(_UNSAFE.sub("?", f"{at}{name[:60]}"))

    def header(self) -> str | None:
        """The value of `X-Ignored-Fields`."""
        names = list(self._names)
        more = [f"and-{len(names) - _MAX_NAMES}-more"] if len(names) > _MAX_NAMES else []
        return ", ".join(names[:_MAX_NAMES] + more) or None


def normalize(call: Call, value: dict[str, Any], *, is_strict: bool) -> Ignored:
    """Change `value`, a request at `call`."""
    ignored = Ignored(is_strict)
    _of_request(call, value, ignored)
    for name, allowed in _OBJECTS.items():
        _object(value.get(name), f"{name}.", allowed, ignored)
    if issubclass(call.body, ResponsesBody):
        _functions_only(value, ignored)
    for tool in _objects(value.get("tools")):
        _without_nulls(tool, ignored)
        if isinstance(tool.get("function"), dict):
            _without_nulls(tool["function"], ignored)
    _hold_to_schemas(value, ignored)
    if issubclass(call.body, _MODELLED):
        for message in _objects(value.get("messages")):
            _of_chat(message, ignored)
    elif issubclass(call.body, ResponsesBody):
        for item in _objects(value.get("input")):
            _of_item(item, ignored)
    elif issubclass(call.body, CountBody):
        _parts(value.get("system"), "system[].", message_content.SYSTEM_PARTS, ignored)
        for message in _objects(value.get("messages")):
            _object(message, "messages[].", message_content.ANTHROPIC_MESSAGE, ignored)
            _blocks(message.get("content"), ignored)
    return ignored


def _of_request(call: Call, value: dict[str, Any], ignored: Ignored) -> None:
    fields = call.body.model_fields
    for name, given in list(value.items()):
        asks_nothing = given is None or _is_one_of(given, _ASKS_NOTHING.get(name, ()))
        if name in fields:
            if asks_nothing and not fields[name].is_required():
                _drop(value, name, ignored)
        elif name in call.refused:
            if asks_nothing:
                _drop(value, name, ignored)
        elif given is None:
            _drop(value, name, ignored)
        elif name in _NEEDLESS or not ignored.is_strict:
            del value[name]
            ignored.add("", name)


def _is_one_of(given: Any, values: tuple[Any, ...]) -> bool:
    """Also in its type: Python takes 1 and true for the same."""
    return any(type(given) is type(value) and given == value for value in values)


def _hold_to_schemas(value: dict[str, Any], ignored: Ignored) -> None:
    """(3) A tool that has to be called is `strict` unless it says that it is not: left free, a
    small model writes arguments that no client can read. One that may be called stays free: a
    schema that is held to is compiled, and tools bring some that the compiler does not take."""
    choice = value.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in (None, "none", "auto"):
        if choice is not None and not value.get("tools"):  # (1) it chooses among none
            _drop(value, "tool_choice", ignored)
        return
    for tool in _objects(value.get("tools")):
        holder = tool.get("function", tool)
        if isinstance(holder, dict) and "strict" not in holder:
            holder["strict"] = True
            ignored.has_changed = True


def _functions_only(value: dict[str, Any], ignored: Ignored) -> None:
    """Without the tools that OpenAI's servers run (web_search, mcp, …): programs name them in every
    request, and the models here cannot call them."""
    tools, kept = value.get("tools"), []
    if not isinstance(tools, list):
        return
    for tool in tools:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            ignored.add("tools[].", kind)
        else:
            kept.append(tool)
    value["tools"] = kept
    if not kept:
        _drop(value, "tools", ignored)


def _of_chat(message: dict[str, Any], ignored: Ignored) -> None:
    _object(message, "messages[].", message_content.CHAT_MESSAGE, ignored)
    _parts(message.get("content"), "messages[].content[].", message_content.CHAT_PARTS, ignored)
    for call in _objects(message.get("tool_calls")):
        _without_nulls(call, ignored)


def _of_item(item: dict[str, Any], ignored: Ignored) -> None:
    _without_nulls(item, ignored)
    if "type" not in item and "role" in item:
        item["type"] = "message"
        ignored.has_changed = True
    kind = item.get("type")
    fields = message_content.RESPONSES_ITEMS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        return
    _object(item, "input[].", fields, ignored)
    reasoning = message_content.REASONING_PARTS
    parts = reasoning if kind == "reasoning" else message_content.RESPONSES_PARTS
    for name, kinds in (("content", parts), ("output", parts), ("summary", reasoning)):
        _parts(item.get(name), f"input[].{name}[].", kinds, ignored)


def _blocks(blocks: Any, ignored: Ignored) -> None:
    _parts(blocks, "messages[].content[].", message_content.ANTHROPIC_PARTS, ignored)
    for block in _objects(blocks):
        if block.get("type") == "tool_result":
            at = "messages[].content[].content[]."
            _parts(block.get("content"), at, message_content.TOOL_RESULT_PARTS, ignored)


def _parts(parts: Any, at: str, kinds: dict[str, frozenset[str]], ignored: Ignored) -> None:
    for part in _objects(parts):
        kind = part.get("type")
        fields = kinds.get(kind) if isinstance(kind, str) else None
        if fields is not None:
            _object(part, at, fields, ignored)


def _object(value: Any, at: str, allowed: Collection[str], ignored: Ignored) -> None:
    if not isinstance(value, dict):
        return
    _without_nulls(value, ignored)
    for name in [] if ignored.is_strict else [name for name in value if name not in allowed]:
        if name not in REFUSED:  # that it is refused is told instead
            del value[name]
            ignored.add(at, name)


def _without_nulls(value: dict[str, Any], ignored: Ignored) -> None:
    for name in [name for name, given in value.items() if given is None and name != "content"]:
        _drop(value, name, ignored)


def _drop(value: dict[str, Any], name: str, ignored: Ignored) -> None:
    del value[name]
    ignored.has_changed = True


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))
