"""Field types, and the base class of all request bodies."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

INT64 = 2**63
Bool = bool | None
Text = str | None
# `fail_fast`: checking stops at the first wrong element, so a million wrong ones give one error.
Items = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Object = dict[str, Any] | None
Count = Annotated[int | None, Field(ge=1, le=INT64 - 1)]
Natural = Annotated[int | None, Field(ge=0, le=INT64 - 1)]
Penalty = Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False)]
Temperature = Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)]
Fraction = Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)]
TopP = Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=INT64)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1)]
TokenIds = Annotated[list[Token], Field(fail_fast=True, max_length=4096)] | None
Strings = Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)]


def _check_prompt_form(value: Any) -> Any:
    """Give one clear error instead of pydantic's error for each form that a prompt may have."""
    if isinstance(value, str) and value:
        return value
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        first = first[0] if first else None
    if not isinstance(first, str | int) or isinstance(first, bool):
        raise ValueError(
            "a string, an array of strings, an array of token IDs or an array of token ID arrays"
        )
    return value


def check_input_form(value: Any) -> Any:
    """Give one clear error instead of pydantic's error for each form that an input may have."""
    if not isinstance(value, str | list) or not value:
        raise ValueError("a non-empty string or a non-empty array of items")
    return value


def _check_bool(value: Any) -> Any:
    """Refuse 0 and 1: in a `Literal`, pydantic accepts 0 for false even in strict mode."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


OnlyTrue = Annotated[Literal[True], BeforeValidator(_check_bool)]
OnlyFalse = Annotated[Literal[False], BeforeValidator(_check_bool)]

# The `prompt` of a completion, and the `input` of a request for embeddings.
Prompt = Annotated[
    Annotated[str, Field(min_length=1)]
    | Annotated[list[str], Field(fail_fast=True, min_length=1)]
    | Tokens
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1)],
    BeforeValidator(_check_prompt_form),
]


# The API description allows unknown fields: `normalizing.py` drops them before this check.
OPEN: JsonDict = {"additionalProperties": True}


class Body(BaseModel):
    """The body of a request: its allowed fields, with their types and ranges."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), json_schema_extra=OPEN
    )
    refused: ClassVar[dict[str, str]] = {}  # like REFUSED, for this route only

    model: Annotated[
        str, Field(min_length=1, description="The name of a model; `GET /v1/models` lists them.")
    ]

    @property
    def num_choices(self) -> int:
        """The number of answers that the request asks for."""
        return 1

    @property
    def num_inputs(self) -> int:
        """The number of texts to embed."""
        return 1


class ChatTemplateArguments(BaseModel):
    """Arguments for the model's chat template; the template itself cannot be replaced."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=OPEN)

    enable_thinking: Bool = None
