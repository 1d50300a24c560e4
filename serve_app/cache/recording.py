"""Records an answer as JSON, checks it again when it is read, and replays it under a new id."""

import json
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.types import Message

from serve_app.cache.policy import Route, Value
from serve_app.protocol.heartbeat import without_heartbeats

_DATA = "data: "
_DONE = "data: [DONE]"
_PREFIX = re.compile(r"[a-z]+[-_]")

_T = TypeVar("_T")


class Recording(BaseModel):
    """A whole answer as the cache keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    made_at: float  # Unix time
    is_stream: bool
    parts: list[str]  # a plain answer's body, or a stream's events in order, without heartbeats

    def dump(self) -> bytes:
        return self.model_dump_json().encode()

    def replay(self) -> bytes:
        """Return the answer's body with a new id and time, the same in all events of a stream."""
        whole = "".join(f"{part}\n\n" for part in self.parts) if self.is_stream else self.parts[0]
        return IdRewriter().feed(whole.encode(), is_last=True)


def load(raw: bytes, route: Route) -> Recording | None:
    """Return the recording in `raw`, or None if `record` cannot have made it."""
    try:
        recording = Recording.model_validate_json(raw)
    except ValueError:
        return None
    return recording if _is_whole(route, recording.is_stream, recording.parts) else None


def record(route: Route, messages: Sequence[Message]) -> Recording | None:
    """Return the answer in these ASGI messages, or None if it is not a whole, successful one."""
    start, *rest = messages or [{}]
    if start.get("status") != 200 or not rest or rest[-1].get("more_body"):
        return None
    kind = _content_type(start)
    is_stream = kind == "text/event-stream"
    if not is_stream and kind != "application/json":
        return None
    try:
        body = b"".join(message.get("body", b"") for message in rest).decode()
    except UnicodeDecodeError:
        return None
    parts = [body]
    if is_stream:
        parts = [event for event in without_heartbeats(body).split("\n\n") if event]
    if not _is_whole(route, is_stream, parts):
        return None
    return Recording(made_at=time.time(), is_stream=is_stream, parts=parts)


class IdRewriter:
    """Gives one answer a new id and creation time."""

    def __init__(self) -> None:
        self._id, self._created = uuid.uuid4().hex, int(time.time())
        self._rest = b""

    def feed(self, piece: bytes, *, is_last: bool) -> bytes:
        """Take the next piece of the answer and return all that can be rewritten so far.

        That is the whole events of a stream; of a plain answer nothing before its last piece.
        """
        whole, separator, self._rest = (self._rest + piece).rpartition(b"\n\n")
        if is_last:
            whole, separator, self._rest = whole + separator + self._rest, b"", b""
        return b"\n\n".join(self._rewrite(part) for part in whole.split(b"\n\n")) + separator

    def _rewrite(self, part: bytes) -> bytes:
        """Rewrite a plain body or one event; return a part without a JSON object unchanged."""
        prefix, found, data = part.partition(b"data: ")
        if not found or (prefix and not prefix.endswith(b"\n")):  # not an event
            prefix, found, data = b"", b"", part
        try:
            value = json.loads(data)
        except ValueError:
            return part
        if not isinstance(value, dict):
            return part
        return prefix + found + _dumps(self._with_new_id(value)).encode()

    def _with_new_id(self, value: Value) -> Value:
        """Events of `/v1/responses` and `/v1/messages` carry the id one level deeper."""
        for part in (value, value.get("response"), value.get("message")):
            if isinstance(part, dict):
                if isinstance(part.get("id"), str):
                    prefix = _PREFIX.match(part["id"])
                    part["id"] = (prefix[0] if prefix else "") + self._id
                for name in ("created", "created_at"):
                    if name in part:
                        part[name] = self._created
        return value


def _is_whole(route: Route, is_stream: bool, parts: list[str]) -> bool:
    try:
        if not is_stream:
            (body,) = parts
            return route.is_whole(json.loads(body))
        events = parts
        if route.ends_with_done:
            *events, last = parts
            if last != _DONE:
                return False
        return route.is_whole_stream([_data(event) for event in events])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _data(event: str) -> Value:
    """Return the JSON of an event's single data line. Raises ValueError."""
    (line,) = (line for line in event.split("\n") if line.startswith(_DATA))
    value: Value = json.loads(line.removeprefix(_DATA))
    if "error" in value and value["error"] is not None:
        raise ValueError("an error event")
    return value


def _content_type(start: Message) -> str:
    headers: Iterable[tuple[bytes, bytes]] = start["headers"]
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return kind.decode("latin-1").partition(";")[0].strip().lower()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
