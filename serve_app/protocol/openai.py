"""The request bodies of OpenAI's routes, and of vLLM's `/tokenize` and `/detokenize`.

They check what the gateway needs and what must not reach an engine; the engine checks the rest.
Source: the request models of vLLM 0.32 (`vllm/entrypoints/**/protocol.py`), read field by field.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve_app.protocol.fields import (
    INT64,
    OPEN,
    Bias,
    Body,
    Bool,
    ChatTemplateArguments,
    Count,
    Fraction,
    Items,
    Natural,
    Object,
    OnlyFalse,
    OnlyTrue,
    Penalty,
    Prompt,
    Strings,
    Temperature,
    Text,
    Token,
    TokenId,
    TokenIds,
    TopP,
    check_input_form,
)


class StructuredOutputs(BaseModel):
    """vLLM's own field that constrains an answer, by exactly one of these kinds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_schema: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str | None, Field(min_length=1)] = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = None
    grammar: Annotated[str | None, Field(min_length=1)] = None
    json_object: OnlyTrue | None = None
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
    """The form that the answer must have."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=OPEN)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Object = None


class StreamOptions(BaseModel):
    """What a stream contains besides its text."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=OPEN)

    include_usage: Bool = None
    continuous_usage_stats: Bool = None
    include_obfuscation: Bool = None


class _Sampling(Body):
    """Sampling fields of all OpenAI routes that generate text."""

    stream: Bool = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: Annotated[int | None, Field(ge=-1, lt=INT64)] = None
    min_p: Fraction = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2, allow_inf_nan=False)] = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Annotated[int | None, Field(ge=-INT64, lt=INT64)] = None
    stop: Annotated[str, Field(min_length=1)] | Strings | None = None
    stop_token_ids: TokenIds = None
    include_stop_str_in_output: Bool = None
    ignore_eos: Bool = None
    skip_special_tokens: Bool = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    user: Text = None


class _Generation(_Sampling):
    """Fields that chat and completions share."""

    n: Count = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    max_tokens: Natural = None
    min_tokens: Natural = None
    spaces_between_special_tokens: Bool = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, lt=INT64)] = None
    truncation_side: Literal["left", "right"] | None = None
    prompt_logprobs: Natural = None
    logprob_token_ids: TokenIds = None
    allowed_token_ids: TokenIds = None
    bad_words: Annotated[Strings | None, Field(max_length=128)] = None
    echo: Bool = None
    add_special_tokens: Bool = None
    return_tokens_as_token_ids: Bool = None
    return_token_ids: Bool = None
    stream_interval: Annotated[int | None, Field(ge=1, le=1000)] = None


class _Ignored(Body):
    """OpenAI's fields that do not affect the answer: accepted, because programs send them."""

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
    reasoning_effort: Text = None
    thinking_token_budget: Natural = None
    add_generation_prompt: Bool = None
    continue_final_message: Bool = None
    chat_template_kwargs: ChatTemplateArguments | None = None
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    return_prompt_text: Bool = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    store: Bool = None  # accepted without effect: no route returns stored chats
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

    refused: ClassVar = {"prompt": "prompts are not stored; send the text in `input`"}

    input: Annotated[
        Annotated[str, Field(min_length=1)] | Annotated[Items, Field(min_length=1)],
        BeforeValidator(check_input_form),
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
    background: OnlyFalse | None = None
    store: OnlyFalse | None = None
    stream_options: StreamOptions | None = None


class EmbeddingsBody(Body):
    """`POST /v1/embeddings`: texts in `input`, or chat `messages`, which may contain images"""

    input: Prompt | None = None
    messages: Annotated[Items | None, Field(min_length=1)] = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, lt=INT64)] = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: Bool = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    user: Text = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("exactly one of `input` and `messages` is required")
        return self

    @property
    def num_inputs(self) -> int:
        if not isinstance(self.input, list) or isinstance(self.input[0], int):
            return 1
        return len(self.input)


class TokenizeBody(Body):
    """`POST /tokenize`: a `prompt`, or chat `messages`"""

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
            raise ValueError("exactly one of `prompt` and `messages` is required")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`"""

    tokens: Annotated[list[Token], Field(fail_fast=True)]
