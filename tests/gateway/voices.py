"""How vLLM 0.32 words an answer on each of its routes; read in its source and off its wire."""

import json
from typing import Any

USAGE = {"prompt_tokens": 21, "total_tokens": 26, "completion_tokens": 5}


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Chat:
    """`/v1/chat/completions`"""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, body: dict[str, Any]) -> None:
        self.model, self.body = model, body
        self.num_choices = body.get("n") or 1

    def plain(self, text: str, reason: str) -> bytes:
        choices = [
            {"index": i, "finish_reason": reason} | self._whole(text)
            for i in range(self.num_choices)
        ]
        return json_bytes(self._head(self.kind) | {"choices": choices, "usage": USAGE})

    def first(self) -> list[bytes]:
        return [self._piece(i, "", None, is_first=True) for i in range(self.num_choices)]

    def token(self, text: str) -> list[bytes]:
        return [self._piece(i, text, None) for i in range(self.num_choices)]

    def last(self, text: str, reason: str) -> list[bytes]:
        pieces = [self._piece(i, "", reason) for i in range(self.num_choices)]
        if (self.body.get("stream_options") or {}).get("include_usage"):
            usage = self._head(self.chunk_kind) | {"choices": [], "usage": USAGE}
            pieces.append(b"data: " + json_bytes(usage) + b"\n\n")
        return pieces

    def polite_death(self, text: str) -> list[bytes]:
        """The end of an engine whose core is killed: nothing but the last word."""
        return self.done()

    def error(self, message: str) -> list[bytes]:
        error = json.dumps({"error": {"message": message, "type": "x", "code": 500}})
        return [f"data: {error}\n\n".encode(), *self.done()]

    def refusal(self, message: str) -> tuple[list[bytes], bool]:
        """What is sent of a stream that is refused, and whether the connection then breaks."""
        error = json.dumps({"error": {"message": message, "type": "x", "code": 400}})
        return [f"data: {error}\n\n".encode(), *self.done()], False

    def done(self) -> list[bytes]:
        return [b"data: [DONE]\n\n"]

    def _whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _piece(self, index: int, text: str, reason: str | None, *, is_first: bool = False) -> bytes:
        delta = {"role": "assistant"} if is_first else {}
        choice = {"index": index, "delta": delta | {"content": text}, "finish_reason": reason}
        return self._event({"choices": [choice]})

    def _event(self, value: dict[str, Any]) -> bytes:
        return b"data: " + json_bytes(self._head(self.chunk_kind) | value) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": self.model}


class Completions(Chat):
    """`/v1/completions`"""

    kind = chunk_kind = "text_completion"

    def __init__(self, model: str, body: dict[str, Any]) -> None:
        super().__init__(model, body)
        prompt = body["prompt"]
        is_list = isinstance(prompt, list) and not isinstance(prompt[0], int)
        self.num_choices *= len(prompt) if is_list else 1

    def first(self) -> list[bytes]:
        return []

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece(self, index: int, text: str, reason: str | None, *, is_first: bool = False) -> bytes:
        return self._event({"choices": [{"index": index, "text": text, "finish_reason": reason}]})


class _Named:
    """Events with names; a cut answer ends like a whole one."""

    def __init__(self, model: str, body: dict[str, Any]) -> None:
        self.model, self.body = model, body
        self._num_events = 0

    def polite_death(self, text: str) -> list[bytes]:
        return [*self.last(text, "stop"), *self.done()]

    def last(self, text: str, reason: str) -> list[bytes]:
        raise NotImplementedError

    def done(self) -> list[bytes]:
        raise NotImplementedError

    def _event(self, name: str, value: dict[str, Any]) -> bytes:
        return f"event: {name}\ndata: ".encode() + json_bytes({"type": name} | value) + b"\n\n"


class Responses(_Named):
    """`/v1/responses`"""

    last_event = "response.completed"

    def plain(self, text: str, reason: str) -> bytes:
        return json_bytes(self._response("completed", text))

    def first(self) -> list[bytes]:
        response = {"response": self._response("in_progress")}
        part = {"type": "output_text", "text": "", "annotations": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress"}
        return [
            self._numbered("response.created", response),
            self._numbered("response.in_progress", response),
            self._numbered("response.output_item.added", {"item": item | {"content": []}}),
            self._numbered("response.content_part.added", {"part": part}),
        ]

    def token(self, text: str) -> list[bytes]:
        return [self._numbered("response.output_text.delta", {"delta": text})]

    def last(self, text: str, reason: str) -> list[bytes]:
        self._text = text
        return [
            self._numbered("response.output_text.done", {"text": text}),
            self._numbered("response.content_part.done", {"part": {"text": text}}),
            self._numbered("response.output_item.done", {"item": {"id": "msg_1"}}),
        ]

    def done(self) -> list[bytes]:
        response = self._response(self.last_event.removeprefix("response."), self._text)
        return [self._numbered(self.last_event, {"response": response})]

    def error(self, message: str) -> list[bytes] | None:
        return None  # vLLM's generator raises, and the connection is cut

    def refusal(self, message: str) -> tuple[list[bytes], bool]:
        return self.first()[:2], True

    def _numbered(self, name: str, value: dict[str, Any]) -> bytes:
        head = {"sequence_number": self._num_events, "output_index": 0, "content_index": 0}
        self._num_events += 1
        return self._event(name, head | value)

    def _response(self, status: str, text: str | None = None) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"id": "msg_1", "type": "message", "role": "assistant", "content": content}
        reason = {"code": "server_error", "message": "the grammar is broken"}
        failure = {"error": reason} if status == "failed" else {}
        return failure | {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": self.model,
            "status": status,
            "output": [] if text is None else [item],
            "usage": None if text is None else {"input_tokens": 1, "output_tokens": 5},
        }


class Messages(_Named):
    """`/v1/messages`"""

    def plain(self, text: str, reason: str) -> bytes:
        content = [{"type": "text", "text": text}]
        message = self._message() | {"content": content}
        if reason != "abort":  # of an abort vLLM leaves the field out
            message |= {"stop_reason": "end_turn"}
        return json_bytes(message)

    def first(self) -> list[bytes]:
        usage = {"input_tokens": 1, "output_tokens": 0}
        start = self._message() | {"stop_reason": None, "stop_sequence": None, "usage": usage}
        block = {"type": "text", "text": ""}
        return [
            self._event("message_start", {"message": start}),
            self._event("content_block_start", {"index": 0, "content_block": block}),
        ]

    def token(self, text: str) -> list[bytes]:
        delta = {"type": "text_delta", "text": text}
        return [self._event("content_block_delta", {"index": 0, "delta": delta})]

    def last(self, text: str, reason: str) -> list[bytes]:
        stop = None if reason == "abort" else "end_turn"
        delta = {"stop_reason": stop, "stop_sequence": None}
        usage = {"input_tokens": 1, "output_tokens": 5}
        return [
            self._event("content_block_stop", {"index": 0}),
            self._event("message_delta", {"delta": delta, "usage": usage}),
        ]

    def done(self) -> list[bytes]:
        return [self._event("message_stop", {})]

    def error(self, message: str) -> list[bytes]:
        """Its converter cannot read chat's error event, says so, and stops."""
        text = "4 validation errors for ChatCompletionStreamResponse\nid\n  Field required"
        return [self._event("error", {"error": {"type": "internal_error", "message": text}})]

    def refusal(self, message: str) -> tuple[list[bytes], bool]:
        return self.error(message), False

    def _message(self) -> dict[str, Any]:
        return {
            "id": "chatcmpl-1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.model,
        }


VOICES = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/responses": Responses,
    "/v1/messages": Messages,
}
