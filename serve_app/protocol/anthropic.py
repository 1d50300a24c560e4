"""The request bodies of Anthropic's routes. Source: see `openai.py`."""

from typing import Annotated, ClassVar

from pydantic import Field

from serve_app.protocol.fields import (
    INT64,
    Body,
    Bool,
    ChatTemplateArguments,
    Fraction,
    Items,
    Natural,
    Object,
    Strings,
    Text,
    TopP,
)
from serve_app.protocol.refused import STATE_OF_MESSAGES


class CountBody(Body):
    """`POST /v1/messages/count_tokens`"""

    messages: Annotated[Items, Field(min_length=1)]
    system: str | Items | None = None
    tools: Items | None = None
    tool_choice: Object = None
    output_config: Object = None
    chat_template_kwargs: ChatTemplateArguments | None = None
    cache_control: Object = None  # ignored: the engine caches prefixes anyway
    context_management: Object = None  # ignored: the conversation is not edited


class MessagesBody(CountBody):
    """`POST /v1/messages`"""

    refused: ClassVar = {"thread": STATE_OF_MESSAGES}
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)]
    thinking: Object = None
    stream: Bool = None
    stop_sequences: Strings | None = None
    temperature: Fraction = None
    top_p: TopP = None
    top_k: Natural = None
    metadata: Object = None
    service_tier: Text = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
