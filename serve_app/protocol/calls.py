"""The addresses that a model answers at: the fields each takes, and those refused.

A field that is not here is left out of what the engine is sent (`normalizing.py`). The models check
what the gateway must know or must not let through; everything finer is the engine's to check. A
request of which nothing was left out is sent on as the bytes that came.

Source: the request models of vLLM 0.32 (`vllm/entrypoints/**/protocol.py`), read field by field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from deployments.settings import Task
from serve_app.protocol.errors import Dialect
from serve_app.protocol.stream_end import ChatStreamCheck, NamedStreamCheck, StreamCheck

# Fields that would change the answer or its cost, and cannot be done here, on every route, and why.
# What else is unknown here is left out: see `normalizing.py`.
_OWN_TEMPLATE = "a template is a program; the model's own is used"
_OWN_MEDIA = "it sets how much memory and time a picture takes"
_EMBEDS = "embeddings are unpickled tensors that skip the tokenizer's checks"
_TRANSFER = "it steers transfers between the engines of a cluster"
_STATE = "answers are not stored: send the whole conversation with each request, and `store: false`"
_STATE_OF_MESSAGES = (
    "conversations are not stored: send all messages with each request, without `thread`"
)
_OLD_TOOLS = "it is deprecated; use `tools` and `tool_choice`"
_OLD_GUIDED = "vLLM no longer has it; use `structured_outputs` or `response_format`"
REFUSED = {
    "chat_template": _OWN_TEMPLATE,
    "media_io_kwargs": _OWN_MEDIA,
    "mm_processor_kwargs": _OWN_MEDIA,
    "prompt_embeds": _EMBEDS,
    "kv_transfer_params": _TRANSFER,
    "ec_transfer_params": _TRANSFER,
    "vllm_xargs": "it reaches plug-ins of the engine, of which there are none",
    "logits_processors": "it names Python code to run in the engine",
    "use_beam_search": "one such request takes the engine's places of many",
    "watermarking": "no watermark is set up",
    "repetition_detection": "it searches the whole answer at every token",
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "prompt_id": _STATE,
    "context": _STATE,
    "container": _STATE,
    "mcp_servers": "no tools are run here",
    "web_search_options": "no tools are run here",
    "audio": "the models do not speak",
    "functions": _OLD_TOOLS,
    "function_call": _OLD_TOOLS,
    "suffix": "the models are not asked to fill in the middle on this route",
    "best_of": "use `n`",
    "guided_json": _OLD_GUIDED,
    "guided_regex": _OLD_GUIDED,
    "guided_choice": _OLD_GUIDED,
    "guided_grammar": _OLD_GUIDED,
    "guided_decoding_backend": _OLD_GUIDED,
}

_INT64 = 2**63
Bool = bool | None
Text = str | None
# A list stops at its first wrong element: a million wrong ones are told as one.
Items = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Object = dict[str, Any] | None
Number = Annotated[float | None, Field(allow_inf_nan=False)]
Count = Annotated[int | None, Field(ge=1, le=_INT64 - 1)]
Natural = Annotated[int | None, Field(ge=0, le=_INT64 - 1)]
Penalty = Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False)]
Temperature = Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)]
TopP = Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=_INT64)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1)]
TokenIds = Annotated[list[Token], Field(fail_fast=True, max_length=4096)] | None
Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)]


def _one_kind(value: Any) -> Any:
    """Says what is wrong with a prompt before its forms are tried one by one."""
    if isinstance(value, str) and value:
        return value
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        first = first[0] if first else None
    if not isinstance(first, str | int) or isinstance(first, bool):
        raise ValueError(
            "a text, a list of texts, a list of token numbers or a list of those lists"
        )
    return value


def _text_or_items(value: Any) -> Any:
    """Says what is wrong with an input before its two forms are tried."""
    if not isinstance(value, str | list) or not value:
        raise ValueError("a text, or a list of items; not empty")
    return value


def _bool(value: Any) -> Any:
    """Pydantic takes 0 for false here, also where it is strict."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


Yes = Annotated[Literal[True], BeforeValidator(_bool)]
No = Annotated[Literal[False], BeforeValidator(_bool)]

# What a completion goes on with, and what is embedded.
Prompt = Annotated[
    Annotated[str, Field(min_length=1)]
    | Annotated[list[str], Field(fail_fast=True, min_length=1)]
    | Tokens
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1)],
    BeforeValidator(_one_kind),
]


# Clients may send unknown fields: `normalizing.py` leaves them out before this check.
_OPEN: JsonDict = {"additionalProperties": True}


class Body(BaseModel):
    """A request's body: the fields that are allowed, and what is checked of them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), json_schema_extra=_OPEN
    )
    refused: ClassVar[dict[str, str]] = {}  # on this route alone, like REFUSED

    model: Annotated[str, Field(min_length=1, description="The name of a model: see `/v1/models`.")]

    @property
    def num_choices(self) -> int:
        """How many answers are asked for."""
        return 1

    @property
    def num_inputs(self) -> int:
        """How many texts are to be embedded."""
        return 1


class StructuredOutputs(BaseModel):
    """vLLM's own way to constrain an answer: exactly one of these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_schema: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str | None, Field(min_length=1)] = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = None
    grammar: Annotated[str | None, Field(min_length=1)] = None
    json_object: Yes | None = None
    whitespace_pattern: Text = None
    disable_any_whitespace: Bool = None
    disable_additional_properties: Bool = None

    @model_validator(mode="after")
    def _one_kind(self) -> "StructuredOutputs":
        kinds = (self.json_schema, self.regex, self.choice, self.grammar, self.json_object)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("exactly one of json, regex, choice, grammar, json_object is required")
        return self


class ResponseFormat(BaseModel):
    """What an answer must look like."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_OPEN)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Object = None


class StreamOptions(BaseModel):
    """What a stream tells besides its text."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_OPEN)

    include_usage: Bool = None
    continuous_usage_stats: Bool = None
    include_obfuscation: Bool = None


class ChatTemplateArguments(BaseModel):
    """What a template's own switches are set to; not the template."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_OPEN)

    enable_thinking: Bool = None


class _Sampling(Body):
    """How an answer is drawn; on all routes of OpenAI's that generate."""

    stream: Bool = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: Annotated[int | None, Field(ge=-1, lt=_INT64)] = None
    min_p: Share = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2, allow_inf_nan=False)] = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Annotated[int | None, Field(ge=-_INT64, lt=_INT64)] = None
    stop: Annotated[str, Field(min_length=1)] | Words | None = None
    stop_token_ids: TokenIds = None
    include_stop_str_in_output: Bool = None
    ignore_eos: Bool = None
    skip_special_tokens: Bool = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    user: Text = None


class _Generation(_Sampling):
    """What chat and completions have in common."""

    n: Count = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    max_tokens: Natural = None
    min_tokens: Natural = None
    spaces_between_special_tokens: Bool = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, lt=_INT64)] = None
    truncation_side: Literal["left", "right"] | None = None
    prompt_logprobs: Natural = None
    logprob_token_ids: TokenIds = None
    allowed_token_ids: TokenIds = None
    bad_words: Annotated[Words | None, Field(max_length=128)] = None
    echo: Bool = None
    add_special_tokens: Bool = None
    return_tokens_as_token_ids: Bool = None
    return_token_ids: Bool = None
    stream_interval: Annotated[int | None, Field(ge=1, le=1000)] = None


class _Ignored(Body):
    """OpenAI's fields that ask nothing of a model: taken, so that programs run, and not used."""

    metadata: dict[str, str] | None = None
    service_tier: Text = None
    safety_identifier: Text = None
    prompt_cache_key: Text = None
    prompt_cache_retention: Text = None


class ChatBody(_Generation, _Ignored):
    """`POST /v1/chat/completions`"""

    messages: Annotated[Items, Field(min_length=1)]
    max_tokens: Count = None
    max_completion_tokens: Count = None
    logprobs: Bool = None
    top_logprobs: Natural = None
    tools: Annotated[Items | None, Field(min_length=1)] = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: Bool = None
    include_reasoning: Bool = None
    add_generation_prompt: Bool = None
    continue_final_message: Bool = None
    chat_template_kwargs: ChatTemplateArguments | None = None
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    return_prompt_text: Bool = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    store: Bool = None  # taken and not done: nothing on this route can be read back
    verbosity: Text = None
    prediction: Object = None

    @property
    def num_choices(self) -> int:
        return self.n or 1


class CompletionBody(_Generation):
    """`POST /v1/completions`"""

    prompt: Prompt
    logprobs: Natural = None

    @property
    def num_prompts(self) -> int:
        is_list = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return len(self.prompt) if is_list else 1

    @property
    def num_choices(self) -> int:
        return (self.n or 1) * self.num_prompts


class ResponsesBody(_Sampling, _Ignored):
    """`POST /v1/responses`"""

    refused = {"prompt": "prompts are not stored: send the text itself"}

    input: Annotated[
        Annotated[str, Field(min_length=1)] | Annotated[Items, Field(min_length=1)],
        BeforeValidator(_text_or_items),
    ]
    instructions: Text = None
    max_output_tokens: Count = None
    max_tool_calls: Count = None
    parallel_tool_calls: Bool = None
    reasoning: Object = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    include_reasoning: Bool = None
    text: Object = None
    tools: Items | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    top_logprobs: Natural = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: ChatTemplateArguments | None = None
    background: No | None = None
    store: No | None = None
    stream_options: StreamOptions | None = None


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

    refused = {"thread": _STATE_OF_MESSAGES}
    max_tokens: Annotated[int, Field(ge=1, lt=_INT64)]
    stream: Bool = None
    stop_sequences: Words | None = None
    temperature: Share = None
    top_p: TopP = None
    top_k: Natural = None
    metadata: Object = None
    service_tier: Text = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None


class EmbeddingsBody(Body):
    """`POST /v1/embeddings`: texts in `input`, or `messages` as chat has them, images among them"""

    input: Prompt | None = None
    messages: Annotated[Items | None, Field(min_length=1)] = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, lt=_INT64)] = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: Bool = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    user: Text = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("either `input` or `messages` is required")
        return self

    @property
    def num_inputs(self) -> int:
        if not isinstance(self.input, list) or isinstance(self.input[0], int):
            return 1
        return len(self.input)


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt, or messages as chat has them"""

    prompt: Text = None
    messages: Annotated[Items | None, Field(min_length=1)] = None
    tools: Annotated[Items | None, Field(min_length=1)] = None
    add_special_tokens: Bool = None
    add_generation_prompt: Bool = None
    continue_final_message: Bool = None
    return_token_strs: Bool = None
    chat_template_kwargs: ChatTemplateArguments | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either `prompt` or `messages` is required")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`"""

    tokens: Annotated[list[Token], Field(fail_fast=True)]


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
