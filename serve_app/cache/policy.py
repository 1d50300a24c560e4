"""Decides which answers may be cached, route by route.

An answer is kept if the same request would get the same answer again:
(1) nothing is drawn at random: the client itself set a temperature of 0, or, if the settings
    allow it, a seed;
(2) the request asks for one choice;
(3) the answer depends on the request alone, not on the content at an address in it;
(4) the answer is whole. `stop`, `length` and `tool_calls` all mark a whole answer: the limit
    behind `length` is part of the request.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_FINISHED = ("stop", "length", "tool_calls", "function_call")
_STOPPED = ("end_turn", "max_tokens", "stop_sequence", "tool_use")
_RESPONDED = ("completed", "incomplete")
_ADDRESSES = ("url", "image_url", "file_url", "video_url", "audio_url")

Value = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """How the requests and answers of one route are judged."""

    is_whole: Callable[[Value], bool]
    is_whole_stream: Callable[[list[Value]], bool] = lambda _: False  # takes the events' JSON
    is_sampled: bool = True
    ends_with_done: bool = False  # a stream's last event is `[DONE]`
    # Fields that change neither the answer nor the parts of the request that it repeats.
    ignored: tuple[str, ...] = ()


def is_cacheable(route: Route, request: Value, is_seed_enough: bool) -> bool:
    """Whether the answer to a valid request may be kept if it turns out whole (4)."""
    if _has_remote_parts(request):  # (3)
        return False
    if not route.is_sampled:
        return True
    if request.get("n") not in (None, 1):  # (2)
        return False
    temperature, seed = request.get("temperature"), request.get("seed")
    is_greedy = _is_number(temperature) and temperature == 0
    return is_greedy or (is_seed_enough and _is_number(seed))  # (1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_remote_parts(request: Value) -> bool:
    """Whether the request refers to a picture or file by address: its content may change."""
    pending: list[Any] = [request.get("messages"), request.get("input")]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            addresses = (part.get(name) for name in _ADDRESSES)
            if any(isinstance(a, str) and not a.startswith("data:") for a in addresses):
                return True
            pending += part.values()
    return False


def _is_whole_completion(answer: Value) -> bool:
    choices = answer["choices"]
    return bool(choices) and all(choice["finish_reason"] in _FINISHED for choice in choices)


def _is_whole_completion_stream(events: list[Value]) -> bool:
    reasons: dict[int, str | None] = {}
    for choice in _choices(events):
        reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
    return bool(reasons) and all(reason in _FINISHED for reason in reasons.values())


def _choices(events: list[Value]) -> Iterator[Value]:
    for event in events:
        yield from event["choices"]


def _is_whole_message(answer: Value) -> bool:
    return answer["stop_reason"] in _STOPPED


def _is_whole_message_stream(events: list[Value]) -> bool:
    reasons = [e["delta"].get("stop_reason") for e in events if e["type"] == "message_delta"]
    return events[-1]["type"] == "message_stop" and reasons[-1] in _STOPPED


def _is_whole_response(answer: Value) -> bool:
    return answer["status"] in _RESPONDED


def _is_whole_response_stream(events: list[Value]) -> bool:
    return events[-1]["type"] in ("response.completed", "response.incomplete")


_COMPLETION = Route(
    is_whole=_is_whole_completion,
    is_whole_stream=_is_whole_completion_stream,
    ends_with_done=True,
    ignored=(
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ),
)

ROUTES = {
    "/v1/chat/completions": _COMPLETION,
    "/v1/completions": _COMPLETION,
    "/v1/messages": Route(
        is_whole=_is_whole_message, is_whole_stream=_is_whole_message_stream, ignored=("metadata",)
    ),
    "/v1/responses": Route(  # an answer repeats all fields of its request: none is ignored
        is_whole=_is_whole_response, is_whole_stream=_is_whole_response_stream
    ),
    "/v1/messages/count_tokens": Route(
        is_whole=lambda answer: "input_tokens" in answer, is_sampled=False
    ),
    "/v1/embeddings": Route(
        is_whole=lambda answer: bool(answer["data"]), is_sampled=False, ignored=("user",)
    ),
    "/tokenize": Route(is_whole=lambda answer: "tokens" in answer, is_sampled=False),
    "/detokenize": Route(is_whole=lambda answer: "prompt" in answer, is_sampled=False),
}
