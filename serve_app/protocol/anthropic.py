"""The bodies of Anthropic's addresses. Source: see `openai.py`."""

from typing import Annotated, ClassVar

from pydantic import Field

from serve_app.protocol.fields import (
    INT64,
    Body,
    Bool,
    ChatTemplateArguments,
    Items,
    Natural,
    Object,
    Share,
    Text,
    TopP,
    Words,
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
    cache_control: Object = None  # prefixes are cached without being asked
    context_management: Object = None  # the conversation is taken as it comes


class MessagesBody(CountBody):
    """`POST /v1/messages`"""

    refused: ClassVar = {"thread": STATE_OF_MESSAGES}
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)]
    stream: Bool = None
    stop_sequences: Words | None = None
    temperature: Share = None
    top_p: TopP = None
    top_k: Natural = None
    metadata: Object = None
    service_tier: Text = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
