"""Checks the parts of messages, and finds the pictures among them.

vLLM takes more kinds of content than the models here: embeddings as pickled tensors, video, audio,
files, and pictures named by a key instead of sent. So a part is taken only if it is of a known kind
and has no other fields than that kind's.
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
    """One picture in a request's value, where it can be replaced."""

    param: str  # its place, as errors name it
    address: str
    replace: Callable[[str], None]  # by one with a data address


def pictures(body: Body, value: dict[str, Any]) -> list[Picture]:
    """All pictures of a request, in order. `value` is what `body` was made of.

    Raises:
        InvalidRequest: a part is of an unknown kind, or has fields that its kind does not have.
    """
    match body:
        case ChatBody() | TokenizeBody() | EmbeddingsBody():
            messages = value.get("messages") or []
            return [p for at, m in _numbered(messages, "messages") for p in _of_chat(m, at)]
        case ResponsesBody():
            items = value["input"] if isinstance(value["input"], list) else []
            return [p for at, item in _numbered(items, "input") for p in _of_item(item, at)]
        case CountBody():
            system = list(_of_parts(value.get("system"), "system", SYSTEM_PARTS, _no_picture))
            return system + [
                p
                for at, message in _numbered(value["messages"], "messages")
                for p in _of_message(message, at)
            ]
    return []


def _numbered(items: list[dict[str, Any]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{name}[{number}]", item) for number, item in enumerate(items))


_Reader = Callable[[dict[str, Any], str], Iterator[Picture]]


def _of_parts(
    content: Any, at: str, kinds: dict[str, frozenset[str]], read: _Reader
) -> Iterator[Picture]:
    """The pictures of a content: text, nothing, or a list of parts."""
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidType(f"Invalid type for '{at}': text, or a list of parts.", at)
    for number, part in enumerate(content):
        here = f"{at}[{number}]"
        if not isinstance(part, dict):
            raise InvalidType(f"Invalid type for '{here}': an object is expected.", here)
        kind = part.get("type")
        fields = kinds.get(kind) if isinstance(kind, str) else None
        if fields is None:
            raise InvalidValue(
                f"Invalid '{here}.type': supported are {', '.join(kinds)}.", f"{here}.type"
            )
        _no_others(part, here, fields)
        if not isinstance(part.get("text", ""), str):
            raise InvalidType(f"Invalid type for '{here}.text': text is expected.", here)
        yield from read(part, here)


def _no_others(value: dict[str, Any], at: str, fields: frozenset[str]) -> None:
    for name in value:
        if name not in fields:
            raise UnknownField(f"Unknown parameter: '{at}.{name[:60]}'.", at)


def _no_picture(_: dict[str, Any], __: str) -> Iterator[Picture]:
    return iter(())


def _role(message: dict[str, Any], at: str, roles: tuple[str, ...]) -> None:
    role = message.get("role")
    if role is None:
        raise MissingField(f"Missing required parameter: '{at}.role'.", f"{at}.role")
    if role not in roles:
        raise InvalidValue(f"Invalid '{at}.role': supported are {', '.join(roles)}.", f"{at}.role")


def _of_chat(message: dict[str, Any], at: str) -> Iterator[Picture]:
    _role(message, at, _CHAT_ROLES)
    _no_others(message, at, CHAT_MESSAGE)
    return _of_parts(message.get("content"), f"{at}.content", CHAT_PARTS, _image_url)


def _image_url(part: dict[str, Any], at: str) -> Iterator[Picture]:
    if part["type"] == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or set(image) - {"url", "detail"}:
            raise InvalidType(
                f"Invalid type for '{at}.image_url': an object with `url` is expected.", at
            )
        yield _picture(image, "url", f"{at}.image_url.url")


def _of_item(item: dict[str, Any], at: str) -> Iterator[Picture]:
    kind = item.get("type", "message")
    fields = RESPONSES_ITEMS.get(kind) if isinstance(kind, str) else None
    if kind == "item_reference":
        raise InvalidValue(
            f"Invalid '{at}': items are not stored, so they cannot be referenced; send the whole "
            "conversation, with `store: false`.",
            f"{at}.type",
        )
    if fields is None:
        kinds = ", ".join(RESPONSES_ITEMS)
        raise InvalidValue(f"Invalid '{at}.type': supported are {kinds}.", f"{at}.type")
    _no_others(item, at, fields)
    if kind == "message":
        _role(item, at, _CHAT_ROLES)
    yield from _of_parts(item.get("output"), f"{at}.output", RESPONSES_PARTS, _input_image)
    parts = REASONING_PARTS if kind == "reasoning" else RESPONSES_PARTS
    yield from _of_parts(item.get("content"), f"{at}.content", parts, _input_image)
    yield from _of_parts(item.get("summary"), f"{at}.summary", REASONING_PARTS, _no_picture)


def _input_image(part: dict[str, Any], at: str) -> Iterator[Picture]:
    if part["type"] == "input_image":
        if part.get("file_id") is not None:
            raise InvalidImage(
                f"'{at}.file_id': files are not stored; send the picture itself.", at
            )
        yield _picture(part, "image_url", f"{at}.image_url")


def _of_message(message: dict[str, Any], at: str) -> Iterator[Picture]:
    _role(message, at, ("user", "assistant", "system"))
    _no_others(message, at, ANTHROPIC_MESSAGE)
    content = message.get("content")
    if content is None:
        raise MissingField(f"Missing required parameter: '{at}.content'.", f"{at}.content")
    return _of_parts(content, f"{at}.content", ANTHROPIC_PARTS, _block)


def _block(block: dict[str, Any], at: str) -> Iterator[Picture]:
    if block["type"] == "tool_result":
        yield from _of_parts(block.get("content"), f"{at}.content", TOOL_RESULT_PARTS, _block)
    if block["type"] == "image":
        yield _source(block.get("source"), f"{at}.source")


def _source(source: Any, at: str) -> Picture:
    """Anthropic's way to name a picture, which the engine makes a data address of."""
    kind = source.get("type") if isinstance(source, dict) else None
    fields = {"base64": {"type", "media_type", "data"}, "url": {"type", "url"}}.get(str(kind))
    if (
        fields is None
        or set(source) != fields
        or not all(isinstance(source[f], str) for f in fields)
    ):
        raise InvalidImage(
            f"Invalid '{at}': `type` base64 with `media_type` and `data`, or url with `url`.", at
        )

    def replace(address: str) -> None:
        head, _, data = address.partition(",")
        media_type = head.removeprefix("data:").partition(";")[0]
        source.clear()
        source.update(type="base64", media_type=media_type, data=data)

    if kind == "url":
        return Picture(f"{at}.url", source["url"], replace)
    return Picture(f"{at}.data", f"data:{source['media_type']};base64,{source['data']}", replace)


def _picture(holder: dict[str, Any], key: str, param: str) -> Picture:
    address = holder.get(key)
    if not isinstance(address, str) or not address:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)

    def replace(new: str) -> None:
        holder[key] = new

    return Picture(param, address, replace)
