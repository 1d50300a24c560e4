"""Tests which requests may be cached and which answers are whole."""

import json
from typing import Any

import pytest

from serve_app.cache.policy import ROUTES, is_cacheable
from serve_app.cache.recording import IdRewriter, load, record

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
REMOTE = {"type": "image_url", "image_url": {"url": "https://studio.example/1.png"}}


def with_content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


# --- requests ---


@pytest.mark.parametrize(
    ("path", "request_", "seeded", "expected"),
    [
        (CHAT, {"temperature": 0}, False, True),
        (CHAT, {"temperature": 0.0, "n": 1, "stream": True}, False, True),
        (CHAT, {"temperature": 0, "n": None}, False, True),
        (CHAT, {}, True, False),  # the model's own default temperature is 0.7
        (CHAT, {"temperature": None}, True, False),
        (CHAT, {"temperature": False}, True, False),
        (CHAT, {"temperature": "0"}, True, False),
        (CHAT, {"temperature": 1e-9}, True, False),
        (CHAT, {"temperature": 0, "n": 2}, True, False),
        (CHAT, {"temperature": 0.7, "seed": 1}, False, False),
        (CHAT, {"temperature": 0.7, "seed": 1}, True, True),
        (CHAT, {"seed": None}, True, False),
        (CHAT, {"temperature": 0} | with_content(PICTURE), False, True),
        (CHAT, {"temperature": 0} | with_content(PICTURE, REMOTE), False, False),
        (CHAT, {"temperature": 0, "messages": "no list"}, False, True),
        (MESSAGES, {"temperature": 0}, False, True),
        (
            MESSAGES,
            {"temperature": 0} | with_content({"source": {"type": "url", "url": "http://x/"}}),
            False,
            False,
        ),
        (RESPONSES, {"temperature": 0}, False, True),
        (EMBEDDINGS, {"input": ["a", "b"]}, False, True),
        ("/tokenize", {"prompt": "a"}, False, True),
    ],
)
def test_only_repeatable_requests_are_cacheable(
    path: str, request_: dict[str, Any], seeded: bool, expected: bool
) -> None:
    """Their answer would be the same again and depends on the request alone."""
    assert is_cacheable(ROUTES[path], request_, seeded) is expected


# --- answers ---


def messages(
    body: bytes, kind: str = "application/json", status: int = 200
) -> list[dict[str, Any]]:
    head = [(b"content-type", kind.encode()), (b"x-model", b"m")]
    return [
        {"type": "http.response.start", "status": status, "headers": head},
        {"type": "http.response.body", "body": body[:7], "more_body": True},
        {"type": "http.response.body", "body": body[7:], "more_body": False},
    ]


def stream(*events: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(e)}" if isinstance(e, dict) else e for e in events]
    return "".join(f"{line}\n\n" for line in [*lines, *(["data: [DONE]"] if done else [])]).encode()


def choice(reason: str | None, index: int = 0) -> dict[str, Any]:
    return {"id": "c-1", "choices": [{"index": index, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        (CHAT, choice("stop"), True),
        (CHAT, choice("length"), True),
        (CHAT, choice("tool_calls"), True),
        (CHAT, choice("abort"), False),
        (CHAT, choice(None), False),
        (CHAT, {"choices": []}, False),
        (CHAT, {"error": {"code": 500}}, False),
        (CHAT, [], False),
        (MESSAGES, {"stop_reason": "end_turn"}, True),
        (MESSAGES, {"stop_reason": None}, False),
        (RESPONSES, {"status": "completed", "error": None}, True),
        (RESPONSES, {"status": "in_progress"}, False),
        (RESPONSES, {"status": "failed"}, False),
        (EMBEDDINGS, {"data": [{"embedding": [0.1]}]}, True),
        (EMBEDDINGS, {"data": []}, False),
        ("/v1/messages/count_tokens", {"input_tokens": 3}, True),
        ("/tokenize", {"tokens": []}, True),
    ],
)
def test_only_a_whole_answer_is_kept(path: str, answer: Any, expected: bool) -> None:
    """Each route marks a whole answer in its own way."""
    kept = record(ROUTES[path], messages(json.dumps(answer).encode()))
    assert (kept is not None) is expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, stream(choice(None), choice("stop")), True),
        (CHAT, stream(": waiting", choice(None), choice("length"), {"choices": []}), True),
        (CHAT, stream(choice(None)), False),
        (CHAT, stream(choice("stop"), choice(None, 1)), False),
        (CHAT, stream(choice("stop"), done=False), False),
        (CHAT, stream(choice("abort")), False),
        (CHAT, stream(choice("stop"), {"error": {"code": 500}}), False),
        (CHAT, stream(), False),
        (
            MESSAGES,
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1"}}\n\n'
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":'
            b'"end_turn"}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
            True,
        ),
        (MESSAGES, b'event: message_stop\ndata: {"type":"message_stop"}\n\n', False),
        (
            RESPONSES,
            b'event: response.completed\ndata: {"type":"response.completed","response":'
            b'{"id":"resp_1","error":null}}\n\n',
            True,
        ),
        (RESPONSES, b'data: {"type":"response.failed"}\n\n', False),
        (EMBEDDINGS, stream({"data": [1]}), False),
    ],
)
def test_only_a_whole_stream_is_kept(path: str, body: bytes, expected: bool) -> None:
    """A stream that just ends is not whole: it must say that it has finished."""
    kept = record(ROUTES[path], messages(body, "text/event-stream; charset=utf-8"))
    assert (kept is not None) is expected
    if kept:
        assert not any(part.startswith(":") for part in kept.parts)
        assert load(kept.dump(), ROUTES[path]) == kept


@pytest.mark.parametrize("status", [201, 400, 500, 503])
def test_only_a_200_is_kept(status: int) -> None:
    """Even if the body looks like a whole answer."""
    assert (
        record(ROUTES[CHAT], messages(json.dumps(choice("stop")).encode(), status=status)) is None
    )


def test_an_answer_without_its_last_piece_is_not_kept() -> None:
    """The generation was stopped before its end."""
    assert record(ROUTES[CHAT], messages(json.dumps(choice("stop")).encode())[:-1]) is None
    assert record(ROUTES[CHAT], []) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",  # a pickle
        b'{"made_at":1,"is_stream":false,"parts":[]}',
        b'{"made_at":1,"is_stream":false,"parts":["{}"]}',
        b'{"made_at":1,"is_stream":true,"parts":["x"]}',
        b'{"made_at":1,"is_stream":true,"parts":["data: {}","data: [DONE]"]}',
        b'{"made_at":"x","is_stream":false,"parts":["{}"]}',
        b'{"more":1,"made_at":1,"is_stream":false,"parts":["{}"]}',
    ],
)
def test_a_corrupt_value_in_the_store_is_a_miss(raw: bytes) -> None:
    """A value read from the store is checked like one that an engine has just sent."""
    assert load(raw, ROUTES[CHAT]) is None


# --- new ids ---


def test_a_replay_has_a_new_id_and_time_and_nothing_else_new() -> None:
    """The id keeps its prefix, which tells its kind."""
    answer = choice("stop") | {"id": "chatcmpl-1", "created": 1, "usage": {"t": 2}, "text": "é"}
    kept = record(ROUTES[CHAT], messages(json.dumps(answer).encode()))
    assert kept
    first, second = json.loads(kept.replay()), json.loads(kept.replay())
    assert first["id"] != second["id"] != answer["id"]
    assert first["id"].startswith("chatcmpl-")
    assert first["created"] > 1
    assert first | {"id": 0, "created": 0} == answer | {"id": 0, "created": 0}


def test_the_new_id_is_the_same_in_all_events() -> None:
    """Also where the id is nested one level deeper. The ids of parts stay."""
    body = (
        b'event: response.created\ndata: {"response":{"id":"resp_1","created_at":1}}\n\n'
        b'data: {"item":{"id":"item_1"}}\n\n'
        b'data: {"response":{"id":"resp_1","created_at":1}}\n\ndata: [DONE]\n\n'
    )
    rewritten = IdRewriter().feed(body, is_last=True)
    first, part, last, done, end = rewritten.split(b"\n\n")
    assert first.startswith(b"event: response.created\ndata: {")
    assert first.partition(b"data: ")[2] == last.partition(b"data: ")[2]
    assert b'"resp_1"' not in rewritten
    assert (part, done, end) == (b'data: {"item":{"id":"item_1"}}', b"data: [DONE]", b"")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_get_the_same_id(size: int) -> None:
    """The pieces of a shared stream may be cut anywhere."""
    body = stream(": waiting", {"id": "c-1", "text": "data: x"}, {"id": "c-1", "text": "東京"})
    rewriter = IdRewriter()
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    rewritten = b"".join(rewriter.feed(piece, is_last=False) for piece in pieces)
    rewritten += rewriter.feed(b"", is_last=True)
    events = [
        json.loads(e[6:]) for e in rewritten.decode().split("\n\n") if e.startswith("data: {")
    ]
    assert [event["text"] for event in events] == ["data: x", "東京"]
    assert len({event["id"] for event in events}) == 1
    assert rewritten.startswith(b": waiting\n\n")
    assert rewritten.endswith(b"\n\ndata: [DONE]\n\n")


def test_a_body_that_is_not_an_object_is_not_rewritten() -> None:
    """It passes unchanged."""
    for body in (b"", b"plain", b"[1]", b'"x"'):
        assert IdRewriter().feed(body, is_last=True) == body
