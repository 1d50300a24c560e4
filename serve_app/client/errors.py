"""Every error the client raises.

LLMError
├── Unreachable            no connection, or it broke before there was an answer
├── DeadlineExceeded       the call's own time is over
├── AnswerCut              a stream ended before its end
├── SwitchFailed           a switch ended with `rolled_back` or `failed`
└── APIError               the backend answered with an error
    ├── NotAllowed         401, 403: the key
    ├── NotFound           404: no such model, route or ticket
    ├── LeaseHeld          409: another owner has a lease
    ├── Overloaded         429: the queue is full
    ├── ModelNotResident   503: and the request was not to wait, or another model has a lease
    └── ModelLoadFailed    503: the model could not be loaded
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any


class LLMError(Exception):
    """Whatever keeps the client from an answer; its text is one sentence."""


class Unreachable(LLMError):
    pass


class DeadlineExceeded(LLMError):
    pass


class AnswerCut(LLMError):
    """What came before stands; `code` is the error event's, None where the stream just ended."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class SwitchFailed(LLMError):
    """`ticket` tells its phases, and in `error` the cause."""

    def __init__(self, ticket: dict[str, Any]) -> None:
        error = ticket.get("error") or {}
        why = error.get("message") or "no reason is known"
        what = f"The switch to {ticket['to']}" if ticket.get("to") else "The unloading"
        end = ticket["state"].replace("_", " ")
        back = f" to {ticket['from']}" if end == "rolled back" and ticket.get("from") else ""
        super().__init__(f"{what} {'was' if back else 'has'} {end}{back}: {why}")
        self.ticket = ticket


class APIError(LLMError):
    """The backend's own error; `code` and `type` as OpenAI words them."""

    def __init__(
        self,
        message: str,
        status: int,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code
        self.type, self.param, self.retry_after_s = type, param, retry_after_s


class NotAllowed(APIError):
    pass


class NotFound(APIError):
    pass


class LeaseHeld(APIError):
    pass


class Overloaded(APIError):
    pass


class ModelNotResident(APIError):
    pass


class ModelLoadFailed(APIError):
    pass


_BY_CODE = {
    "lease_held": LeaseHeld,
    "model_not_resident": ModelNotResident,
    "leased": ModelNotResident,
    "model_load_failed": ModelLoadFailed,
}
_BY_STATUS = {401: NotAllowed, 403: NotAllowed, 404: NotFound, 429: Overloaded}


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> APIError:
    """The error that an answer is; a body that is not ours, as a proxy's, is told by its status."""
    error = _error_object(body)
    message = error.get("message") or f"The backend answered with status {status}."
    code = error.get("code")
    kind = _BY_CODE.get(code) if isinstance(code, str) else None
    retry_after_s = None
    with contextlib.suppress(KeyError, ValueError):
        retry_after_s = float(headers["retry-after"])
    return (kind or _BY_STATUS.get(status, APIError))(
        message, status, code, error.get("type"), error.get("param"), retry_after_s
    )


def _error_object(body: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(value.get("error"), dict):
            error: dict[str, Any] = value["error"]
            return error
    return {}
