"""A strict reader of chat streams: whatever it takes, every client takes."""

import codecs
import json
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


def check(content_type: str | None, raw: bytes, num_choices: int = 1) -> Stream:
    """Read a whole stream.

    (1) event-stream, UTF-8 at any split, whole events of one `data:` line, or comments; (2) one id,
    created and model; (3) a choice begins with its role and has at most one finish_reason; (4) the
    last event is `[DONE]`, then every choice has finished, or an error, and nothing comes after.
    """
    assert content_type is not None
    assert content_type.partition(";")[0] == "text/event-stream"  # (1)
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = "".join(decoder.decode(bytes([byte])) for byte in raw) + decoder.decode(b"", True)
    assert "\r" not in text
    assert text.endswith("\n\n"), f"the last event is cut: {text[-80:]!r}"
    stream = Stream()
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert not stream.is_done, f"after [DONE]: {event!r}"
        assert stream.error is None, f"after the error: {event!r}"
        assert "\n" not in event, f"more than one line: {event!r}"
        if event.startswith(":"):
            stream.num_heartbeats += 1
        elif event == "data: [DONE]":
            stream.is_done = True
        else:
            assert event.startswith("data: {"), f"not an event: {event!r}"
            _add(stream, json.loads(event.removeprefix("data: ")))
    heads = {(c["id"], c["created"], c["model"], c["object"]) for c in stream.chunks}
    assert len(heads) <= 1, heads  # (2)
    assert stream.is_done or stream.error, "a silent end"  # (4)
    if stream.is_done:
        assert set(stream.reasons) == set(range(num_choices)), stream.reasons
    return stream


def _add(stream: Stream, value: dict[str, Any]) -> None:
    if "error" in value:
        assert set(value["error"]) >= {"message", "type", "param", "code"}
        stream.error = value["error"]
        return
    assert value["object"] == "chat.completion.chunk"
    stream.chunks.append(value)
    stream.usage = value.get("usage") or stream.usage
    for choice in value["choices"]:
        index, delta, reason = choice["index"], choice["delta"], choice["finish_reason"]
        assert ("role" in delta) == (index not in stream.texts), "role first, and once"  # (3)
        assert index not in stream.reasons, "a delta after the finish_reason"
        stream.texts[index] = stream.texts.get(index, "") + (delta.get("content") or "")
        if reason is not None:
            assert reason != "abort"
            stream.reasons[index] = reason
