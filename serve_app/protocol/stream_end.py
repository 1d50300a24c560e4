"""Tells a stream that finished from one that a dying engine ended politely.

An engine that dies ends its own streams politely, with `[DONE]` or `message_stop`. Chat and
completions say for each choice why it finished, so there the absence of a reason gives a death
away. Responses and messages say "completed" and "end_turn" of a cut answer too: after their last
event the engine is asked whether it lives.
"""

import re
from dataclasses import dataclass
from typing import Protocol

SEPARATOR = b"\n\n"
_DONE = b"data: [DONE]\n\n"
_ERROR_DATA = b'data: {"error":'
_FAILURE = re.compile(rb"^event: (?:error|response\.failed)\n", re.MULTILINE)
# Responses begin with these before the engine has looked at the request.
_PREAMBLE = (b"event: response.created\n", b"event: response.in_progress\n")
_FINISHED = b'"finish_reason":"'
ABORTED = b'"finish_reason":"abort"'
_MESSAGE_DELTA = b"event: message_delta\n"
_NO_REASON = b'"stop_reason":null'


@dataclass(frozen=True)
class StreamState:
    """What a piece of a stream is worth."""

    good: bytes  # whole events that may go on
    is_preamble: bool = False  # they are only what is said before the request is looked at
    is_over: bool = False  # `good` ends with the stream's last word
    is_lost: bool = False  # the engine died
    error: bytes | None = None  # its own error event's data, after `good`; what follows is no news


class StreamCheck(Protocol):
    """Judges one stream while it passes."""

    needs_proof_of_life: bool  # whether its last word is believed only of a living engine

    def judge(self, events: bytes) -> StreamState:
        """The next events, whole ones, each with its separator."""
        ...


class ChatStreamCheck:
    """Of chat and completions: `[DONE]`, after a finish_reason for every choice."""

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
    """Of responses and messages: an event of a certain name."""

    needs_proof_of_life = True

    def __init__(self, *last: str) -> None:
        self._last = [f"event: {name}\n".encode() for name in last]

    def judge(self, events: bytes) -> StreamState:
        found = _FAILURE.search(events)
        whole = events[: found.start()] if found else events
        if _NO_REASON in whole.partition(_MESSAGE_DELTA)[2]:  # how messages call an abort
            return StreamState(b"", is_lost=True)
        is_preamble = sum(map(whole.count, _PREAMBLE)) == whole.count(SEPARATOR)
        if found:
            data = events[found.end() :].partition(SEPARATOR)[0].removeprefix(b"data: ")
            return StreamState(whole, is_preamble, error=data)
        return StreamState(whole, is_preamble, is_over=any(last in whole for last in self._last))
