"""The kinds of fields, and what all bodies share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

INT64 = 2**63
Bool = bool | None
Text = str | None
# A list stops at its first wrong element: a million wrong ones are told as one.
Items = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Object = dict[str, Any] | None
Number = Annotated[float | None, Field(allow_inf_nan=False)]
Count = Annotated[int | None, Field(ge=1, le=INT64 - 1)]
Natural = Annotated[int | None, Field(ge=0, le=INT64 - 1)]
Penalty = Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False)]
Temperature = Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)]
TopP = Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=INT64)]
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


def text_or_items(value: Any) -> Any:
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
OPEN: JsonDict = {"additionalProperties": True}


class Body(BaseModel):
    """A request's body: the fields that are allowed, and what is checked of them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), json_schema_extra=OPEN
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


class ChatTemplateArguments(BaseModel):
    """What a template's own switches are set to; not the template."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=OPEN)

    enable_thinking: Bool = None
