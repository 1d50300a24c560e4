"""Strict readers of streams: whatever they take, every client takes."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """A stream that kept the rules."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    reasons: dict[int, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None  # of its last event
    is_done: bool = False
    num_heartbeats: int = 0
    usage: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        return self.is_done or self.error is not None


def check(content_type: str | None, raw: bytes, num_choices: int = 1) -> Stream:
    """Read a whole stream of chat or of completions.

    (1) event-stream, UTF-8 at any split, whole events of one `data:` line, or comments; (2) one id,
    created and model; (3) a chat's choice begins with its role and has at most one finish_reason;
    (4) the last event is `[DONE]`, then every choice has finished, or an error, and nothing comes
    after.
    """
    stream = Stream()
    for name, data in _events(content_type, raw, stream):
        assert name is None, name
        if data == "[DONE]":
            stream.is_done = True
        else:
            _add(stream, json.loads(data))
    heads = {(c["id"], c["created"], c["model"], c["object"]) for c in stream.chunks}
    assert len(heads) <= 1, heads  # (2)
    assert stream.is_over, "a silent end"  # (4)
    if stream.is_done:
        assert set(stream.reasons) == set(range(num_choices)), stream.reasons
    return stream


def check_of(path: str, content_type: str | None, raw: bytes) -> Stream:
    """Read a whole stream of the route."""
    checks = {"/v1/responses": check_responses, "/v1/messages": check_messages}
    return checks.get(path, check)(content_type, raw)


def check_responses(content_type: str | None, raw: bytes) -> Stream:
    """Read a whole stream of `/v1/responses`.

    (1) as of chat, each with its name, which its data repeat; (2) numbered from 0 without a gap;
    (3) `response.created` first, one id; (4) deltas add up to the text that is done; (5) the last
    event is `response.completed` with that text, or an error, and nothing comes after.
    """
    stream = Stream()
    for name, data in _events(content_type, raw, stream):
        value = json.loads(data)
        assert value["type"] == name, (name, value)  # (1)
        assert value["sequence_number"] == len(stream.chunks), value  # (2)
        stream.chunks.append(value)
        if name == "error":
            assert {"message", "code", "param"} <= set(value)
            stream.error = value
        elif name == "response.output_text.delta":
            index = value["output_index"]
            stream.texts[index] = stream.texts.get(index, "") + value["delta"]
        elif name == "response.output_text.done":
            assert value["text"] == stream.texts.get(value["output_index"], "")  # (4)
        elif name == "response.completed":
            stream.is_done = True
            stream.usage = value["response"]["usage"]
            stream.reasons[0] = value["response"]["status"]
            for index, item in enumerate(value["response"]["output"]):
                if item["type"] == "message":
                    text = "".join(part["text"] for part in item["content"])
                    assert text == stream.texts.get(index, "")  # (5)
    if stream.chunks[0]["type"] != "error":
        assert stream.chunks[0]["type"] == "response.created"  # (3)
    ids = {c["response"]["id"] for c in stream.chunks if "response" in c}
    assert len(ids) <= 1, ids
    assert stream.is_over, "a silent end"
    return stream


def check_messages(content_type: str | None, raw: bytes) -> Stream:
    """Read a whole stream of `/v1/messages`.

    (1) as of chat, each with its name, which its data repeat; (2) `message_start` first and once;
    (3) blocks are opened, filled and closed one after the other; (4) a stop_reason before the end;
    (5) the last event is `message_stop`, or an error, and nothing comes after.
    """
    stream, open_block, num_blocks = Stream(), False, 0
    for name, data in _events(content_type, raw, stream):
        value = json.loads(data)
        assert value["type"] == name, (name, value)  # (1)
        if name == "ping":
            stream.num_heartbeats += 1
            continue
        assert (name == "message_start") == (not stream.chunks) or name == "error"  # (2)
        stream.chunks.append(value)
        match name:
            case "content_block_start":
                assert not open_block  # (3)
                assert value["index"] == num_blocks
                open_block, num_blocks = True, num_blocks + 1
            case "content_block_delta":
                assert open_block
                assert value["index"] == num_blocks - 1
                index = value["index"]
                delta = value["delta"]
                text = delta.get("text") or delta.get("partial_json") or ""
                stream.texts[index] = stream.texts.get(index, "") + text
            case "content_block_stop":
                assert open_block
                open_block = False
            case "message_delta":
                assert value["delta"]["stop_reason"]  # (4)
                stream.reasons[0] = value["delta"]["stop_reason"]
                stream.usage = value["usage"]
            case "message_stop":
                assert stream.reasons
                assert not open_block
                stream.is_done = True
            case "error":
                assert {"type", "message"} <= set(value["error"])
                stream.error = value["error"]
            case _:
                assert name == "message_start", name
    assert stream.is_over, "a silent end"
    return stream


def _events(
    content_type: str | None, raw: bytes, stream: Stream
) -> Iterator[tuple[str | None, str]]:
    """Name and data of each event; counts comments, and sees that nothing follows the end."""
    assert content_type is not None
    assert content_type.partition(";")[0] == "text/event-stream"
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = "".join(decoder.decode(bytes([byte])) for byte in raw) + decoder.decode(b"", True)
    assert "\r" not in text
    assert text.endswith("\n\n"), f"the last event is cut: {text[-80:]!r}"
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert not stream.is_over, f"after the end: {event!r}"
        while event.startswith(":"):  # never alone: decoders take that for an empty event
            comment, _, event = event.partition("\n")
            assert event, f"a comment without an event: {comment!r}"
            stream.num_heartbeats += 1
        name = None
        if event.startswith("event: "):
            line, _, event = event.partition("\n")
            name = line.removeprefix("event: ")
        assert "\n" not in event, f"more than one line: {event!r}"
        assert event.startswith("data: "), f"not an event: {event!r}"
        yield name, event.removeprefix("data: ")


def _add(stream: Stream, value: dict[str, Any]) -> None:
    if "error" in value:
        assert set(value["error"]) >= {"message", "type", "param", "code"}
        stream.error = value["error"]
        return
    is_chat = value["object"] == "chat.completion.chunk"
    assert is_chat or value["object"] == "text_completion"
    stream.chunks.append(value)
    stream.usage = value.get("usage") or stream.usage
    for choice in value["choices"]:
        index, reason = choice["index"], choice["finish_reason"]
        if is_chat:
            delta = choice["delta"]
            assert ("role" in delta) == (index not in stream.texts), "role first, and once"  # (3)
            text = delta.get("content") or ""
        else:
            text = choice["text"]
        assert index not in stream.reasons, "a delta after the finish_reason"
        stream.texts[index] = stream.texts.get(index, "") + text
        if reason is not None:
            assert reason != "abort"
            stream.reasons[index] = reason
