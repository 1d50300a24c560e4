"""Adds request bodies, examples and errors to the API description (`/openapi.json`).

FastAPI cannot see them, because the gateway reads bodies as raw bytes. The schemas of bodies come
from the models that check them; examples and errors are written here.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app.protocol.calls import CALLS
from serve_app.protocol.errors import (
    BackendError,
    BodyTooLarge,
    ContextTooLong,
    DeadlineExceeded,
    Dialect,
    Forbidden,
    InvalidKey,
    MethodNotAllowed,
    ModelNotResident,
    Overloaded,
    UnknownModel,
    UnsupportedMediaType,
    UploadTimeout,
    error_body,
)
from serve_app.protocol.refused import REFUSED
from serve_app.routes.params import LeaseRequest, SwitchRequest, UnloadRequest

_REFERENCE = "#/components/schemas/{model}"
_HELLO = [{"role": "user", "content": "What is the capital of France?"}]
_PICTURE = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What colour is the disc?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo..."}},
    ],
}
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

# Path -> title -> a valid body.
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "A question": {"model": "qwen-14b", "messages": _HELLO, "max_tokens": 64},
        "A stream": {"model": "qwen-14b", "messages": _HELLO, "stream": True},
        "A picture": {"model": "qwen-vl", "messages": [_PICTURE]},
        "A tool": {"model": "qwen-14b", "messages": _HELLO, "tools": [_WEATHER]},
        "JSON": {
            "model": "qwen-14b",
            "messages": _HELLO,
            "response_format": {"type": "json_object"},
        },
    },
    "/v1/completions": {
        "A text to continue": {
            "model": "qwen-coder",
            "prompt": "def add(a, b):",
            "max_tokens": 64,
        }
    },
    "/v1/responses": {
        "A question": {"model": "qwen-14b", "input": "What is the capital of France?"}
    },
    "/v1/messages": {
        "A question": {"model": "qwen-14b", "max_tokens": 64, "messages": _HELLO},
    },
    "/v1/messages/count_tokens": {"A question": {"model": "qwen-14b", "messages": _HELLO}},
    "/v1/embeddings": {"Two texts": {"model": "qwen-vl", "input": ["red", "blue"]}},
    "/tokenize": {"A text": {"model": "qwen-14b", "prompt": "Hello"}},
    "/detokenize": {"Tokens": {"model": "qwen-14b", "tokens": [19556, 905]}},
    "/admin/switch": {
        "Switch and wait": {"model": "qwen-coder", "wait": True},
        "What would happen": {"model": "qwen-coder", "dry_run": True},
    },
    "/admin/unload": {"Let running requests finish": {"drain_timeout_s": 60}},
    "/admin/lease": {"For an hour": {"model": "qwen-14b", "seconds": 3600, "owner": "the show"}},
}

_BODIES: dict[str, type[BaseModel]] = {call.path: call.body for call in CALLS} | {
    "/admin/switch": SwitchRequest,
    "/admin/unload": UnloadRequest,
    "/admin/lease": LeaseRequest,
}

_TOO_LONG = ContextTooLong(
    "This model's maximum context length is 32768 tokens. However, your messages resulted in "
    "40012 tokens. Please reduce the length of the messages.",
    "messages",
)
_UNKNOWN = UnknownModel(
    "The model `gpt-4` does not exist. Available models: qwen-coder, qwen-14b, qwen-vl.", "model"
)
_BODY_ERRORS: list[BackendError] = [
    _TOO_LONG,
    UploadTimeout("The request body was not received in time."),
    BodyTooLarge("The body is larger than 20971520 bytes."),
    UnsupportedMediaType("Unsupported Content-Type; the body must be sent as `application/json`."),
]
_KEY_ERRORS: list[BackendError] = [
    InvalidKey("Invalid API key."),
    Forbidden("This request needs an admin key."),
]
_MODEL_ERRORS: list[BackendError] = [
    _UNKNOWN,
    Overloaded("The queue is full: 256 requests wait."),
    BackendError("Internal error."),
    ModelNotResident("qwen-vl is not resident; qwen-14b is.", "model"),
    DeadlineExceeded("The request exceeded its time limit."),
]

_HEADERS = [
    (
        "X-Switch",
        {"type": "string", "enum": ["wait", "never", "force"], "default": "wait"},
        "If the model is not resident: wait for a switch, get an error at once (never), or start a "
        "switch that cuts other requests (force; needs an admin key).",
    ),
    (
        "X-Max-Wait",
        {"type": "string", "example": "30"},
        "Longest time in seconds that the request waits to be admitted.",
    ),
]


def openapi_document(app: FastAPI, models: list[str]) -> dict[str, Any]:
    """Return the API description; it is built once and kept in `app`, as FastAPI does."""
    if app.openapi_schema is None:
        value = get_openapi(
            title=app.title,
            version=app.version,
            description=_description(),
            routes=app.routes,
        )
        _add_bodies(value, models)
        _add_errors(value)
        app.openapi_schema = value
    return app.openapi_schema


def _description() -> str:
    lines = [f"- `{name}`: {reason}" for name, reason in REFUSED.items()]
    return (
        "Three models behind one address on one GPU. Programs written for OpenAI's or Anthropic's "
        "packages run unchanged.\n\nFields that are not listed here are dropped, and the header "
        "`X-Ignored-Fields` of the answer names them (`unknown_fields: refuse` in the settings "
        "refuses them instead). These fields would change the answer or its cost, and are always "
        "refused:\n\n" + "\n".join(lines)
    )


def _add_bodies(value: dict[str, Any], models: list[str]) -> None:
    kinds = list(dict.fromkeys(_BODIES.values()))
    references, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_REFERENCE
    )
    components = value.setdefault("components", {}).setdefault("schemas", {})
    components |= definitions["$defs"]
    for schema in definitions["$defs"].values():
        if "model" in schema["properties"]:
            schema["properties"]["model"]["enum"] = models
    for path, kind in _BODIES.items():
        examples = {title: {"value": body} for title, body in EXAMPLES[path].items()}
        value["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": references[(kind, "validation")],
                    "examples": examples,
                }
            },
        }
    for call in CALLS:
        operation = value["paths"][call.path]["post"]
        operation["summary"] = (call.body.__doc__ or "").partition("`: ")[2] or call.path
        operation["parameters"] = [
            {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
            for name, schema, text in _HEADERS
        ]
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if "stream" in call.body.model_fields:
            content["text/event-stream"] = {}
        operation["responses"]["200"] = {"description": "The engine's answer.", "content": content}


def _add_errors(value: dict[str, Any]) -> None:
    """Add the errors of each route; remove FastAPI's 422, which no route answers."""
    value.get("components", {}).get("schemas", {}).pop("HTTPValidationError", None)
    value.get("components", {}).get("schemas", {}).pop("ValidationError", None)
    engine_paths = {call.path: call.dialect for call in CALLS}
    for path, operations in value["paths"].items():
        dialect = engine_paths.get(path, Dialect.OPENAI)
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)
            errors: list[BackendError] = [MethodNotAllowed("PUT is not allowed here.")]
            if "requestBody" in operation or operation.get("parameters"):
                errors += _BODY_ERRORS if method == "post" else [_TOO_LONG]
            if not path.startswith("/health"):
                errors += _KEY_ERRORS
            if path in engine_paths or path.startswith("/admin"):
                errors += _MODEL_ERRORS
            if "{" in path:
                errors.append(_UNKNOWN)
            for error in errors:
                responses[str(error.status)] = _response(error, dialect)


def _response(error: BackendError, dialect: Dialect) -> dict[str, Any]:
    example = error_body(error, dialect)
    return {
        "description": f"`{error.code}`" if error.code else "The request is invalid.",
        "content": {"application/json": {"schema": _shape(example), "example": example}},
    }


def _shape(example: Any) -> dict[str, Any]:
    """Return the schema of an error's body."""
    inner = {name: {"type": ["string", "null"]} for name in example["error"]}
    schema: dict[str, Any] = {
        "type": "object",
        "required": list(example),
        "properties": {
            "error": {"type": "object", "required": list(inner), "properties": inner},
        },
    }
    if "type" in example:
        schema["properties"]["type"] = {"const": "error"}
    return schema
