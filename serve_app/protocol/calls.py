"""The addresses that a model answers at, with the body that each takes.

A field that a body does not have is left out of the engine's request (`normalizing.py`). A request
of which nothing was left out is sent on as the bytes that came.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.settings import Task
from serve_app.protocol.anthropic import CountBody, MessagesBody
from serve_app.protocol.errors import Dialect
from serve_app.protocol.fields import Body
from serve_app.protocol.openai import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingsBody,
    ResponsesBody,
    TokenizeBody,
)
from serve_app.protocol.refused import REFUSED
from serve_app.protocol.stream_end import ChatStreamCheck, NamedStreamCheck, StreamCheck


@dataclass(frozen=True)
class Call:
    """One route to an engine, which has it under the same path."""

    path: str
    body: type[Body]
    dialect: Dialect = Dialect.OPENAI
    last_events: tuple[str, ...] = ()  # one ends its streams; without, `[DONE]` does
    task: Task = "generate"  # which of the model's engines has it

    @property
    def refused(self) -> dict[str, str]:
        """The fields that are refused here, and why."""
        return REFUSED | self.body.refused

    def ending(self, num_choices: int) -> StreamCheck:
        """What judges one answer's end."""
        return (
            NamedStreamCheck(*self.last_events)
            if self.last_events
            else ChatStreamCheck(num_choices)
        )


CALLS = [
    Call("/v1/chat/completions", ChatBody),
    Call("/v1/completions", CompletionBody),
    Call(
        "/v1/responses",
        ResponsesBody,
        Dialect.RESPONSES,
        ("response.completed", "response.incomplete"),
    ),
    Call("/v1/messages", MessagesBody, Dialect.ANTHROPIC, ("message_stop",)),
    Call("/v1/messages/count_tokens", CountBody, Dialect.ANTHROPIC),
    Call("/v1/embeddings", EmbeddingsBody, task="embed"),
    Call("/tokenize", TokenizeBody),
    Call("/detokenize", DetokenizeBody),
]


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """In whose shape errors at this path, and the models, are told: Anthropic's on its own routes;
    on those of no engine (`/v1/models`, or a wrong one), the client's that sends its header."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    is_engines = any(path == call.path for call in CALLS)
    is_anthropic = "anthropic-version" in headers and not is_engines
    return Dialect.ANTHROPIC if is_anthropic else Dialect.OPENAI
