"""Drops the fields that have no effect, or that no engine here knows.

Programs send more than a model needs: null for unset fields, fields of other servers, and their own
records in messages that they send back. (1) A null is dropped, and so is a refused field with its
default value. (2) A field that no engine here knows is dropped, and the answer names it in the
header `X-Ignored-Fields`. If the settings say `unknown_fields: refuse`, the field stays, and a
later check refuses it. (3) Optional fields that the engine needs are added.

These functions change the request in place; it is encoded again before it is sent to the engine.
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

_MAX_NAMES = 16  # in the header `X-Ignored-Fields`
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")
# Field -> values with which it has no effect; programs send such fields.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
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
# For models that reason apart from their answer (`reasoning_parser`). For others they are dropped,
# even where unknown fields are refused.
_OF_REASONING = {"thinking", "reasoning_effort", "thinking_token_budget"}
# Fields that hold an object -> the fields of that object.
_OBJECTS = {
    "stream_options": StreamOptions.model_fields,
    "chat_template_kwargs": ChatTemplateArguments.model_fields,
    "response_format": ResponseFormat.model_fields,
}
_WITH_CHAT_MESSAGES = (ChatBody, TokenizeBody, EmbeddingsBody)


class Ignored:
    """The dropped fields: each path once, without list indexes.

    With `is_strict`, unknown fields stay in the request, and a later check refuses them.
    """

    def __init__(self, is_strict: bool) -> None:
        self.is_strict = is_strict
        self._names: dict[str, None] = {}
        self.has_changed = False  # a field was dropped or added, whether or not the header names it

    def add(self, at: str, name: str) -> None:
        self.has_changed = True
        self._names.setdefault(_UNSAFE.sub("?", f"{at}{name[:60]}"))

    def header(self) -> str | None:
        """Return the value of `X-Ignored-Fields`; None if no field is to be named."""
        names = list(self._names)
        more = [f"and-{len(names) - _MAX_NAMES}-more"] if len(names) > _MAX_NAMES else []
        return ", ".join(names[:_MAX_NAMES] + more) or None


def normalize(
    call: Call, value: dict[str, Any], *, is_strict: bool, model_reasons: bool = False
) -> Ignored:
    """Normalize `value`, the body of a request at `call`, and return the dropped fields."""
    ignored = Ignored(is_strict)
    for name in [] if model_reasons else _OF_REASONING & value.keys():
        given = value.pop(name)
        ignored.has_changed = True
        if given is not None:
            ignored.add("", name)
    _normalize_fields(call, value, ignored)
    for name, allowed in _OBJECTS.items():
        _normalize_object(value.get(name), f"{name}.", allowed, ignored)
    if issubclass(call.body, ResponsesBody):
        _drop_hosted_tools(value, ignored)
    for tool in _objects_in(value.get("tools")):
        _drop_nulls(tool, ignored)
        if isinstance(tool.get("function"), dict):
            _drop_nulls(tool["function"], ignored)
    _make_required_tools_strict(value, ignored)
    if issubclass(call.body, _WITH_CHAT_MESSAGES):
        for message in _objects_in(value.get("messages")):
            _normalize_chat_message(message, ignored)
    elif issubclass(call.body, ResponsesBody):
        for item in _objects_in(value.get("input")):
            _normalize_item(item, ignored)
    elif issubclass(call.body, CountBody):
        _normalize_parts(value.get("system"), "system[].", message_content.SYSTEM_PARTS, ignored)
        for message in _objects_in(value.get("messages")):
            _normalize_object(message, "messages[].", message_content.ANTHROPIC_MESSAGE, ignored)
            _normalize_blocks(message.get("content"), ignored)
    return ignored


def _normalize_fields(call: Call, value: dict[str, Any], ignored: Ignored) -> None:
    fields = call.body.model_fields
    for name, given in list(value.items()):
        has_no_effect = given is None or _is_one_of(given, _WITHOUT_EFFECT.get(name, ()))
        if name in fields:
            if has_no_effect and not fields[name].is_required():
                _drop(value, name, ignored)
        elif name in call.refused:
            if has_no_effect:
                _drop(value, name, ignored)
        elif given is None:
            _drop(value, name, ignored)
        elif not ignored.is_strict:
            del value[name]
            ignored.add("", name)


def _is_one_of(given: Any, values: tuple[Any, ...]) -> bool:
    """Whether `given` equals one of the values, in type too: for Python, 1 equals true."""
    return any(type(given) is type(value) and given == value for value in values)


def _make_required_tools_strict(value: dict[str, Any], ignored: Ignored) -> None:
    """(3) If the model must call a tool, make the tools `strict`, unless they set the field.

    Otherwise a small model writes arguments that no client can parse. Tools that the model may call
    stay as they are: the engine compiles the schemas of strict tools, and clients send some that
    the compiler does not accept.
    """
    choice = value.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in (None, "none", "auto"):
        if choice is not None and not value.get("tools"):  # (1) there is no tool to choose
            _drop(value, "tool_choice", ignored)
        return
    for tool in _objects_in(value.get("tools")):
        holder = tool.get("function", tool)
        if isinstance(holder, dict) and "strict" not in holder:
            holder["strict"] = True
            ignored.has_changed = True


def _drop_hosted_tools(value: dict[str, Any], ignored: Ignored) -> None:
    """Drop the tools that OpenAI's servers run (web_search, mcp, …).

    Programs send them in every request, and the models here cannot call them.
    """
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


def _normalize_chat_message(message: dict[str, Any], ignored: Ignored) -> None:
    _normalize_object(message, "messages[].", message_content.CHAT_MESSAGE, ignored)
    _normalize_parts(
        message.get("content"), "messages[].content[].", message_content.CHAT_PARTS, ignored
    )
    for call in _objects_in(message.get("tool_calls")):
        _drop_nulls(call, ignored)


def _normalize_item(item: dict[str, Any], ignored: Ignored) -> None:
    _drop_nulls(item, ignored)
    if "type" not in item and "role" in item:
        item["type"] = "message"
        ignored.has_changed = True
    kind = item.get("type")
    fields = message_content.RESPONSES_ITEMS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        return
    _normalize_object(item, "input[].", fields, ignored)
    reasoning = message_content.REASONING_PARTS
    parts = reasoning if kind == "reasoning" else message_content.RESPONSES_PARTS
    for name, kinds in (("content", parts), ("output", parts), ("summary", reasoning)):
        _normalize_parts(item.get(name), f"input[].{name}[].", kinds, ignored)


def _normalize_blocks(blocks: Any, ignored: Ignored) -> None:
    _normalize_parts(blocks, "messages[].content[].", message_content.ANTHROPIC_PARTS, ignored)
    for block in _objects_in(blocks):
        if block.get("type") == "tool_result":
            at = "messages[].content[].content[]."
            _normalize_parts(block.get("content"), at, message_content.TOOL_RESULT_PARTS, ignored)


def _normalize_parts(
    parts: Any, at: str, kinds: dict[str, frozenset[str]], ignored: Ignored
) -> None:
    for part in _objects_in(parts):
        kind = part.get("type")
        fields = kinds.get(kind) if isinstance(kind, str) else None
        if fields is not None:
            _normalize_object(part, at, fields, ignored)


def _normalize_object(value: Any, at: str, allowed: Collection[str], ignored: Ignored) -> None:
    if not isinstance(value, dict):
        return
    _drop_nulls(value, ignored)
    for name in [] if ignored.is_strict else [name for name in value if name not in allowed]:
        if name not in REFUSED:  # `check_fields` refuses these with their reason
            del value[name]
            ignored.add(at, name)


def _drop_nulls(value: dict[str, Any], ignored: Ignored) -> None:
    for name in [name for name, given in value.items() if given is None and name != "content"]:
        _drop(value, name, ignored)


def _drop(value: dict[str, Any], name: str, ignored: Ignored) -> None:
    del value[name]
    ignored.has_changed = True


def _objects_in(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))
