"""Tells a stream that finished from one that a dying engine ended politely.

A dying engine ends its streams as if they were finished, with `[DONE]` or `message_stop`. Streams
of chat and completions carry a finish reason for each choice; a missing one shows that the engine
died. Streams of responses and messages say "completed" or "end_turn" even of a cut answer, so the
relay checks that the engine is still alive before it passes their last event on.
"""

import re
from dataclasses import dataclass
from typing import Protocol

SEPARATOR = b"\n\n"
_DONE = b"data: [DONE]\n\n"
_ERROR_DATA = b'data: {"error":'
_FAILURE = re.compile(rb"^event: (?:error|response\.failed)\n", re.MULTILINE)
# Streams of /v1/responses begin with these before the engine has checked the request.
_PREAMBLE = (b"event: response.created\n", b"event: response.in_progress\n")
_FINISHED = b'"finish_reason":"'
ABORTED = b'"finish_reason":"abort"'
_MESSAGE_DELTA = b"event: message_delta\n"
_NO_REASON = b'"stop_reason":null'


@dataclass(frozen=True)
class StreamState:
    """The verdict on the next events of a stream."""

    good: bytes  # whole events that may be sent to the client
    is_preamble: bool = False  # `good` has only events sent before the engine checked the request
    is_over: bool = False  # `good` ends with the stream's last event
    is_lost: bool = False  # the engine died
    error: bytes | None = None  # data of the engine's error event after `good`; the rest is ignored


class StreamCheck(Protocol):
    """Judges the events of one stream as they pass."""

    needs_proof_of_life: bool  # whether the last event counts only if the engine is still alive

    def judge(self, events: bytes) -> StreamState:
        """Judge the next events: whole ones, each with its separator."""
        ...


class ChatStreamCheck:
    """For chat and completions: `[DONE]` ends a stream, after a finish_reason for each choice."""

    needs_proof_of_life = False

    def __init__(self, num_choices: int) -> None:
        self._num_unfinished = num_choices

    def judge(self, events: bytes) -> StreamState:
        whole, mark, cause = events.partition(_ERROR_DATA)
        self._num_unfinished -= whole.count(_FINISHED)
        if ABORTED in whole:
            return StreamState(b"", is_lost=True)
        if mark:
            return StreamState(whole, error=b'{"error":' + cause.partition(SEPARATOR)[0])
        is_done = whole.endswith(_DONE)
        if is_done and self._num_unfinished > 0:
            return StreamState(b"", is_lost=True)
        return StreamState(whole, is_over=is_done)


class NamedStreamCheck:
    """For responses and messages: an event with one of certain names ends a stream."""

    needs_proof_of_life = True

    def __init__(self, *last: str) -> None:
        self._last = [f"event: {name}\n".encode() for name in last]

    def judge(self, events: bytes) -> StreamState:
        found = _FAILURE.search(events)
        whole = events[: found.start()] if found else events
        if _NO_REASON in whole.partition(_MESSAGE_DELTA)[2]:  # an abort, as /v1/messages writes it
            return StreamState(b"", is_lost=True)
        is_preamble = sum(map(whole.count, _PREAMBLE)) == whole.count(SEPARATOR)
        if found:
            data = events[found.end() :].partition(SEPARATOR)[0].removeprefix(b"data: ")
            return StreamState(whole, is_preamble, error=data)
        return StreamState(whole, is_preamble, is_over=any(last in whole for last in self._last))
