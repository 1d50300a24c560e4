"""Defines every error that a client can get, and turns errors into HTTP.

    BackendError
    ├── InvalidRequest           400  the body or a parameter is wrong
    │   ├── MissingField         400
    │   ├── UnknownField         400
    │   ├── RefusedField         400  the field exists elsewhere, but cannot be used here
    │   ├── InvalidType          400
    │   ├── InvalidValue         400
    │   ├── InvalidImage         400
    │   ├── ContextTooLong       400  more tokens than the model's context has
    │   ├── UploadTimeout        408  the body was not received in time
    │   ├── BodyTooLarge         413
    │   ├── UnsupportedMediaType 415
    │   └── HeadersTooLarge      431
    ├── InvalidKey               401  the API key is missing or wrong
    ├── Forbidden                403  the key, the Host or the Origin does not allow it
    ├── NotFound                 404  no such route, ticket or log
    │   └── UnknownModel         404
    ├── MethodNotAllowed         405
    ├── SwitchRefused            409  the switch cannot be made as requested
    │   └── LeaseRefused         409  another owner has a lease
    ├── Overloaded               429  the queue is full
    ├── BadAnswer                502  the engine is alive, but its answer cannot be used
    └── Unavailable              503  temporary; the client may try again
        ├── ModelNotResident     503  the client does not wait for a switch, or not long enough
        ├── Leased               503  another model has a lease, so no switch can start
        ├── ModelSwitching       503  a switch cut the request at its drain deadline
        ├── ModelLoadFailed      503  the model's load failed, recently or while the request waited
        ├── EngineLost           503  the engine died during the request
        └── DeadlineExceeded     504  the request's time limit has passed

Ray pickles these errors between processes, so a constructor passes all its arguments, positionally,
to `Exception.__init__`.
"""

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar


class BackendError(Exception):
    """An error whose message is safe to show to a client."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"

    def __init__(
        self, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class InvalidRequest(BackendError):
    status, type = 400, "invalid_request_error"
    code: ClassVar[str | None] = None


class MissingField(InvalidRequest):
    code = "missing_required_parameter"


class UnknownField(InvalidRequest):
    code = "unknown_parameter"


class RefusedField(InvalidRequest):
    code = "unsupported_parameter"


class InvalidType(InvalidRequest):
    code = "invalid_type"


class InvalidValue(InvalidRequest):
    code = "invalid_value"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class UploadTimeout(InvalidRequest):
    status, code = 408, "request_timeout"


class BodyTooLarge(InvalidRequest):
    status, code = 413, "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    status, code = 415, "unsupported_media_type"


class HeadersTooLarge(InvalidRequest):
    status, code = 431, "headers_too_large"


class InvalidKey(BackendError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(BackendError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(BackendError):
    status, type, code = 404, "invalid_request_error", "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class MethodNotAllowed(BackendError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class SwitchRefused(BackendError):
    status, type, code = 409, "invalid_request_error", "switch_refused"


class LeaseRefused(SwitchRefused):
    code = "lease_held"


class Overloaded(BackendError):
    status, type, code = 429, "rate_limit_error", "queue_full"


class BadAnswer(BackendError):
    status, code = 502, "bad_answer"


class Unavailable(BackendError):
    status, type, code = 503, "server_error", "unavailable"


class ModelNotResident(Unavailable):
    code = "model_not_resident"


class Leased(Unavailable):
    code = "leased"


class ModelSwitching(Unavailable):
    code = "model_switching"


class ModelLoadFailed(Unavailable):
    code = "model_load_failed"


class EngineLost(Unavailable):
    code = "engine_restarting"


class DeadlineExceeded(Unavailable):
    status, type, code = 504, "server_error", "timeout"


class Dialect(StrEnum):
    """The API whose format an error has."""

    OPENAI = "openai"  # chat, completions, and our own routes
    RESPONSES = "responses"  # also OpenAI's, but its streams name their events
    ANTHROPIC = "anthropic"  # messages


# Status -> Anthropic's error type.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


# Field -> details by which Anthropic's packages send the whole conversation, without the field.
_ANTHROPIC_DETAILS = {
    "thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
}


def error_body(error: BackendError, dialect: Dialect = Dialect.OPENAI) -> dict[str, Any]:
    """Return the error body in the format of `dialect`."""
    if dialect is Dialect.ANTHROPIC:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
        body: dict[str, Any] = {
            "type": _ANTHROPIC_TYPES.get(error.status, kind),
            "message": error.message,
            "code": error.code,
        }
        if isinstance(error, RefusedField) and error.param in _ANTHROPIC_DETAILS:
            body["details"] = _ANTHROPIC_DETAILS[error.param]
        return {"type": "error", "error": body}
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(
    error: BackendError, dialect: Dialect = Dialect.OPENAI
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body; the only place where errors become HTTP."""
    headers = {"content-type": "application/json"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return error.status, headers, json.dumps(error_body(error, dialect)).encode()


def error_event(
    error: BackendError, dialect: Dialect = Dialect.OPENAI, num_events: int = 0
) -> bytes:
    """Return the server-sent event that ends a stream which cannot be completed.

    `num_events`: the number of events sent before it; events of `/v1/responses` are numbered.
    """
    body = error_body(error, dialect)
    if dialect is Dialect.OPENAI:
        return b"data: " + json.dumps(body).encode() + b"\n\n"
    if dialect is Dialect.RESPONSES:
        # OpenAI's reference has the fields at the top level; its server and client, in `error`.
        body |= body["error"] | {"type": "error", "sequence_number": num_events}
    return b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"
