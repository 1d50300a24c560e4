"""Every error the client raises.

LLMError
├── Unreachable            no connection, or it broke before the answer was complete
├── DeadlineExceeded       the call took longer than its `timeout_s`
├── AnswerCut              a stream ended before the answer was complete
├── SwitchFailed           a switch ended as `rolled_back` or `failed`
└── APIError               the backend answered with an error
    ├── NotAllowed         401, 403: the key is missing, wrong, or not an admin key
    ├── NotFound           404: the model, route or ticket does not exist
    ├── LeaseHeld          409: another owner has a lease
    ├── Overloaded         429: the queue is full
    ├── ModelNotResident   503: the request does not wait for its model, or another model is leased
    └── ModelLoadFailed    503: the model could not be loaded
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any


class LLMError(Exception):
    """Base of all errors of the client; the text is one sentence."""


class Unreachable(LLMError):
    pass


class DeadlineExceeded(LLMError):
    pass


class AnswerCut(LLMError):
    """A stream ended before the answer was complete; the chunks so far are valid. `code`: the code
    of the backend's error event, None if the stream ended without one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class SwitchFailed(LLMError):
    """A switch failed. `ticket`: the finished ticket, with its phases, and the cause in `error`."""

    def __init__(self, ticket: dict[str, Any]) -> None:
        error = ticket.get("error") or {}
        reason = error.get("message") or "the backend gives no reason"
        switch = f"The switch to {ticket['to']}" if ticket.get("to") else "The unload"
        if ticket["state"] == "rolled_back":
            end = f"was rolled back to {ticket.get('from') or 'no model'}"
        else:
            end = f"has {ticket['state'].replace('_', ' ')}"
        super().__init__(f"{switch} {end}: {reason}")
        self.ticket = ticket


class APIError(LLMError):
    """The backend answered with an error.

    `message`, `type`, `param` and `code` have OpenAI's meaning. `status`: the HTTP status.
    `retry_after_s`: the seconds of the `Retry-After` header, None without one.
    """

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
    """Turn an error response into an exception. A body that is not this project's, for example a
    proxy's, gives an error with the status only."""
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
