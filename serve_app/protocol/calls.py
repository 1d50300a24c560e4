"""The routes to an engine, with the body that each takes.

`normalizing.py` drops the fields that a body does not define. If it changes nothing, the engine
gets the bytes that the client sent.
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
    """One route to an engine; the engine serves it under the same path."""

    path: str
    body: type[Body]
    dialect: Dialect = Dialect.OPENAI
    last_events: tuple[str, ...] = ()  # any of these events ends a stream; if empty, `[DONE]` does
    task: Task = "generate"  # a model has one engine for each task

    @property
    def refused(self) -> dict[str, str]:
        """The fields that this route refuses, each with the reason."""
        return REFUSED | self.body.refused

    def stream_check(self, num_choices: int) -> StreamCheck:
        """Return the check for one answer's stream."""
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
    """Return the API whose format a response at `path` has (errors and the list of models).

    Anthropic's own routes: Anthropic. Other engine routes: OpenAI. Routes that lead to no engine
    (`/v1/models`, unknown paths): Anthropic if the client sends `anthropic-version`, else OpenAI.
    """
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    is_engine_route = any(path == call.path for call in CALLS)
    is_anthropic = "anthropic-version" in headers and not is_engine_route
    return Dialect.ANTHROPIC if is_anthropic else Dialect.OPENAI
