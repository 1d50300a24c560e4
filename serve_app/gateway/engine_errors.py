"""Turns an engine's errors into errors for clients, without the engine's internals."""

import json
import re
from typing import Any

from serve_app.protocol.errors import (
    BackendError,
    BadAnswer,
    BodyTooLarge,
    ContextTooLong,
    EngineLost,
    InvalidRequest,
    NotFound,
)

_MAX_MESSAGE = 600
# Only the beginning of a message is read: it may repeat megabytes of the request.
_MAX_READ = 2_000
# Two messages in which vLLM says "bad request" although it could not parse the model's answer:
# pydantic's, with the name of a class that is no request; and json's, on /v1/messages, where
# clients send no JSON inside JSON.
_OWN_ANSWER = re.compile(r"validation errors? for (?!\w{0,60}(?:Request|Param))\w")
_JSON_PLACE = re.compile(r"line \d+ column \d+ \(char \d+\)$")
_ENGINE_DIED = "EngineCore"  # in vLLM's error if its engine process died
# "[21:15:21] /project/cpp/regex.cc:83: " of xgrammar, paths, `File "x.py", line 3`, addresses
_INSIDE = re.compile(
    r"\[\d\d:\d\d:\d\d\] \S+:\d+: |File \"[^\"]*\", line \d+(, in \S+)?"
    r"|(?<![\w:/])(/[\w.-]+){2,}\.\w+(:\d+)?| at 0x[0-9a-f]+|0x[0-9a-f]{6,}"
)
_PYDANTIC_MESSAGE = "'msg': "
_TOO_LONG = re.compile(
    r"maximum context length is (?P<limit>\d+) tokens.*?contains (?P<num>(?:at least )?\d+)"
    r" (?P<unit>\w+)",
    re.DOTALL,
)
_TOO_LONG_OTHERWISE = re.compile(
    r"prompt length (?P<num>\d+) exceeds the max_model_len (?P<limit>\d+)"
    r"|Input length \((?P<num2>\d+)\) exceeds model's maximum context length \((?P<limit2>\d+)\)"
    r"|decoder prompt \(length (?P<num3>\d+)\) is longer than the maximum model length of"
    r" (?P<limit3>\d+)"
)
_PROMPT_FIELDS = {"/v1/completions": "prompt", "/tokenize": "prompt", "/v1/responses": "input"}


def engine_error(status: int, body: bytes, path: str) -> BackendError:
    """Return the client's error for an engine's answer with `status` and `body`.

    For an error event, which has no status, pass 500; a status in its `code` takes precedence.
    """
    message, param, code = _read(body)
    message = message[:_MAX_READ]
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    if status >= 500 and (_ENGINE_DIED in message or status == 503):
        return EngineLost("The engine ended while answering.", retry_after_s=5)
    too_long = _too_long(message, path)
    if too_long:
        return too_long
    is_json = path == "/v1/messages" and _JSON_PLACE.search(message)
    if status < 500 and (is_json or _OWN_ANSWER.search(message)):
        return BadAnswer("The model's answer does not have the requested form.")
    text = _clean(message)
    if status == 404:
        return NotFound(text or "The engine does not know this address.", param)
    if status == 413:
        return BodyTooLarge(text or "The body is too large.", param)
    if status < 500 or status == 501:  # 501: the model does not support it
        return InvalidRequest(text or "The request cannot be answered.", param)
    return BackendError(f"The engine could not answer this request: {text or 'it gave no reason'}")


def _read(body: bytes) -> tuple[str, str | None, Any]:
    """Return message, parameter and code of an error, in whichever format the engine wrote it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", None, None  # HTML or nothing: no message for a client
    if not isinstance(value, dict):
        return "", None, None
    response = value.get("response")  # a `response.failed` event has the error inside the response
    error = (response if isinstance(response, dict) else value).get("error", value)
    if not isinstance(error, dict):
        return str(error), None, None
    message = error.get("message", error.get("detail", ""))
    param = error.get("param")
    if isinstance(message, list):  # a validation error of FastAPI
        message = message[0].get("msg", "") if message and isinstance(message[0], dict) else ""
    name = param.removeprefix("body.")[:100] if isinstance(param, str) and param else None
    return str(message), name, error.get("code")


def _clean(message: str) -> str:
    _, is_pydantics, quoted = message.partition(_PYDANTIC_MESSAGE)
    if is_pydantics:
        message = quoted[1:].partition(f"{quoted[:1]}, '")[0]
    elif "Traceback" in message or "validation errors for" in message:
        return ""  # about a model's answer that the engine could not parse
    message = message.replace("Value error, ", "")
    return " ".join(_INSIDE.sub("", message).split())[:_MAX_MESSAGE]


def _too_long(message: str, path: str) -> ContextTooLong | None:
    field = _PROMPT_FIELDS.get(path, "messages")
    found = _TOO_LONG.search(message)
    if found:
        limit, num, unit = found["limit"], found["num"], found["unit"]
        unit = "tokens" if unit == "input" else unit
    else:
        found = _TOO_LONG_OTHERWISE.search(message)
        if not found:
            return None
        numbers = [group for group in found.groups() if group]
        limit, num, unit = min(numbers, key=int), max(numbers, key=int), "tokens"
    if path.startswith(
        "/v1/messages"
    ):  # Anthropic's words, by which programs know to shorten the prompt
        num_tokens = num.removeprefix("at least ") if unit == "tokens" else str(int(limit) + 1)
        return ContextTooLong(f"prompt is too long: {num_tokens} tokens > {limit} maximum", field)
    return ContextTooLong(
        f"This model's maximum context length is {limit} tokens. However, your {field} resulted in "
        f"{num} {unit}. Please reduce the length of the {field}.",
        field,
    )
