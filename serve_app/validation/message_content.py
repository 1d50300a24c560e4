"""Checks the parts of messages, and finds the pictures among them.

vLLM accepts more types of content than the models here: embeddings as pickled tensors, video,
audio, files, and pictures that a key names. So a part is accepted only if its type is known and it
has only fields of that type.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.protocol.anthropic import CountBody
from serve_app.protocol.errors import (
    InvalidImage,
    InvalidRequest,
    InvalidType,
    InvalidValue,
    MissingField,
    UnknownField,
)
from serve_app.protocol.fields import Body
from serve_app.protocol.openai import ChatBody, EmbeddingsBody, ResponsesBody, TokenizeBody

_CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
CHAT_MESSAGE = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"}
    | {"annotations", "reasoning", "reasoning_content", "cache_control"}
)
_TEXT = frozenset({"type", "text", "cache_control", "annotations", "citations", "logprobs"})
CHAT_PARTS = {
    "text": _TEXT,
    "refusal": frozenset({"type", "refusal"}),
    "image_url": frozenset({"type", "image_url", "cache_control"}),
}
RESPONSES_PARTS = {
    "input_text": _TEXT,
    "output_text": _TEXT,
    "refusal": frozenset({"type", "refusal"}),
    "input_image": frozenset({"type", "image_url", "detail", "file_id"}),
}
_ITEM = frozenset({"type", "id", "status"})
_CALL = _ITEM | {"call_id", "name", "namespace", "caller"}
RESPONSES_ITEMS = {
    "message": _ITEM | {"role", "content", "phase"},
    "function_call": _CALL | {"arguments", "async"},
    "function_call_output": _CALL | {"output"},
    "reasoning": _ITEM | {"content", "summary"},
}
REASONING_PARTS = {kind: frozenset({"type", "text"}) for kind in ("reasoning_text", "summary_text")}
ANTHROPIC_PARTS = {
    "text": _TEXT,
    "image": frozenset({"type", "source", "cache_control"}),
    "tool_use": frozenset(
        {"type", "id", "name", "input", "cache_control", "caller", "toolset_name"}
    ),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
}
ANTHROPIC_MESSAGE = frozenset({"role", "content"})
SYSTEM_PARTS = {"text": _TEXT}
TOOL_RESULT_PARTS = {kind: ANTHROPIC_PARTS[kind] for kind in ("text", "image")}


@dataclass(frozen=True)
class Picture:
    """One picture in the body of a request."""

    param: str  # its path in the body, for errors
    address: str  # its URL, as sent or as a data URL
    replace: Callable[[str], None]  # puts a data URL in its place


def pictures(body: Body, value: dict[str, Any]) -> list[Picture]:
    """Return all pictures of a request, in order. `value` is the JSON from which `body` was made.

    Raises:
        InvalidRequest: a part has an unknown type, or a field that its type does not have.
    """
    match body:
        case ChatBody() | TokenizeBody() | EmbeddingsBody():
            messages = value.get("messages") or []
            return [
                p
                for at, m in _numbered(messages, "messages")
                for p in _pictures_in_chat_message(m, at)
            ]
        case ResponsesBody():
            items = value["input"] if isinstance(value["input"], list) else []
            return [
                p for at, item in _numbered(items, "input") for p in _pictures_in_item(item, at)
            ]
        case CountBody():
            system = list(
                _pictures_in_parts(value.get("system"), "system", SYSTEM_PARTS, _no_picture)
            )
            return system + [
                p
                for at, message in _numbered(value["messages"], "messages")
                for p in _pictures_in_anthropic_message(message, at)
            ]
    return []


def _numbered(items: list[dict[str, Any]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{name}[{number}]", item) for number, item in enumerate(items))


_Reader = Callable[[dict[str, Any], str], Iterator[Picture]]


def _pictures_in_parts(
    content: Any, at: str, kinds: dict[str, frozenset[str]], read: _Reader
) -> Iterator[Picture]:
    """Check a `content` (null, a string or a list of parts) and yield its pictures."""
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidType(f"Invalid type for '{at}': it must be a string or an array of parts.", at)
    for number, part in enumerate(content):
        here = f"{at}[{number}]"
        if not isinstance(part, dict):
            raise InvalidType(f"Invalid type for '{here}': it must be an object.", here)
        kind = part.get("type")
        fields = kinds.get(kind) if isinstance(kind, str) else None
        if fields is None:
            raise InvalidValue(
                f"Invalid '{here}.type': it must be one of {', '.join(kinds)}.", f"{here}.type"
            )
        _check_only_has(part, here, fields)
        if not isinstance(part.get("text", ""), str):
            raise InvalidType(f"Invalid type for '{here}.text': it must be a string.", here)
        yield from read(part, here)


def _check_only_has(value: dict[str, Any], at: str, fields: frozenset[str]) -> None:
    for name in value:
        if name not in fields:
            raise UnknownField(f"Unknown parameter: '{at}.{name[:60]}'.", at)


def _no_picture(_: dict[str, Any], __: str) -> Iterator[Picture]:
    return iter(())


def _check_role(message: dict[str, Any], at: str, roles: tuple[str, ...]) -> None:
    role = message.get("role")
    if role is None:
        raise MissingField(f"Missing required parameter: '{at}.role'.", f"{at}.role")
    if role not in roles:
        raise InvalidValue(
            f"Invalid '{at}.role': it must be one of {', '.join(roles)}.", f"{at}.role"
        )


def _pictures_in_chat_message(message: dict[str, Any], at: str) -> Iterator[Picture]:
    _check_role(message, at, _CHAT_ROLES)
    _check_only_has(message, at, CHAT_MESSAGE)
    return _pictures_in_parts(
        message.get("content"), f"{at}.content", CHAT_PARTS, _picture_in_chat_part
    )


def _picture_in_chat_part(part: dict[str, Any], at: str) -> Iterator[Picture]:
    if part["type"] == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or set(image) - {"url", "detail"}:
            raise InvalidType(
                f"Invalid type for '{at}.image_url': it must be an object with `url`.", at
            )
        yield _picture_in_field(image, "url", f"{at}.image_url.url")


def _pictures_in_item(item: dict[str, Any], at: str) -> Iterator[Picture]:
    kind = item.get("type", "message")
    fields = RESPONSES_ITEMS.get(kind) if isinstance(kind, str) else None
    if kind == "item_reference":
        raise InvalidValue(
            f"Invalid '{at}.type': items are not stored, so they cannot be referenced; send the "
            "whole conversation, with `store: false`.",
            f"{at}.type",
        )
    if fields is None:
        kinds = ", ".join(RESPONSES_ITEMS)
        raise InvalidValue(f"Invalid '{at}.type': it must be one of {kinds}.", f"{at}.type")
    _check_only_has(item, at, fields)
    if kind == "message":
        _check_role(item, at, _CHAT_ROLES)
    yield from _pictures_in_parts(
        item.get("output"), f"{at}.output", RESPONSES_PARTS, _picture_in_input_image
    )
    parts = REASONING_PARTS if kind == "reasoning" else RESPONSES_PARTS
    yield from _pictures_in_parts(
        item.get("content"), f"{at}.content", parts, _picture_in_input_image
    )
    yield from _pictures_in_parts(
        item.get("summary"), f"{at}.summary", REASONING_PARTS, _no_picture
    )


def _picture_in_input_image(part: dict[str, Any], at: str) -> Iterator[Picture]:
    if part["type"] == "input_image":
        if part.get("file_id") is not None:
            raise InvalidImage(
                f"Invalid '{at}.file_id': files are not stored; send the picture in `image_url`.",
                at,
            )
        yield _picture_in_field(part, "image_url", f"{at}.image_url")


def _pictures_in_anthropic_message(message: dict[str, Any], at: str) -> Iterator[Picture]:
    _check_role(message, at, ("user", "assistant", "system"))
    _check_only_has(message, at, ANTHROPIC_MESSAGE)
    content = message.get("content")
    if content is None:
        raise MissingField(f"Missing required parameter: '{at}.content'.", f"{at}.content")
    return _pictures_in_parts(content, f"{at}.content", ANTHROPIC_PARTS, _pictures_in_block)


def _pictures_in_block(block: dict[str, Any], at: str) -> Iterator[Picture]:
    if block["type"] == "tool_result":
        yield from _pictures_in_parts(
            block.get("content"), f"{at}.content", TOOL_RESULT_PARTS, _pictures_in_block
        )
    if block["type"] == "image":
        yield _picture_in_source(block.get("source"), f"{at}.source")


def _picture_in_source(source: Any, at: str) -> Picture:
    """Check the `source` of an image block; the engine turns it into a data URL."""
    kind = source.get("type") if isinstance(source, dict) else None
    fields = {"base64": {"type", "media_type", "data"}, "url": {"type", "url"}}.get(str(kind))
    if (
        fields is None
        or set(source) != fields
        or not all(isinstance(source[f], str) for f in fields)
    ):
        raise InvalidImage(
            f"Invalid '{at}': it must have `type: base64` with `media_type` and `data`, or "
            "`type: url` with `url`.",
            at,
        )

    def replace(address: str) -> None:
        head, _, data = address.partition(",")
        media_type = head.removeprefix("data:").partition(";")[0]
        source.clear()
        source.update(type="base64", media_type=media_type, data=data)

    if kind == "url":
        return Picture(f"{at}.url", source["url"], replace)
    return Picture(f"{at}.data", f"data:{source['media_type']};base64,{source['data']}", replace)


def _picture_in_field(holder: dict[str, Any], key: str, param: str) -> Picture:
    address = holder.get(key)
    if not isinstance(address, str) or not address:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)

    def replace(new: str) -> None:
        holder[key] = new

    return Picture(param, address, replace)
