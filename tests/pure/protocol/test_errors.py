"""Errors cross process borders whole, and look to clients as OpenAI's do."""

import json
import pickle
import re

import pytest

import serve_app.protocol.errors
from serve_app.protocol.errors import (
    BackendError,
    InvalidRequest,
    ModelSwitching,
    Overloaded,
    error_event,
    error_response,
)


def all_classes(base: type[BackendError] = BackendError) -> list[type[BackendError]]:
    return [base, *(c for sub in base.__subclasses__() for c in all_classes(sub))]


@pytest.mark.parametrize("kind", all_classes())
def test_error_keeps_everything_through_pickle(kind):
    copy = pickle.loads(pickle.dumps(kind("the message", "model", 2.5)))  # noqa: S301  our own
    assert type(copy) is kind
    assert (copy.message, copy.param, copy.retry_after_s) == ("the message", "model", 2.5)
    assert str(copy) == "the message"


def test_drawn_tree_is_the_real_one():
    drawn: list[tuple[int, str, int | None]] = []
    for line in (serve_app.protocol.errors.__doc__ or "").splitlines():
        found = re.match(r"^ {4}([│├└─ ]*)([A-Z]\w+)(?: +(\d{3})\b.*)?$", line)
        if found:
            indent, name, status = found.groups()
            drawn.append((len(indent) // 4, name, int(status) if status else None))

    def walk(kind: type[BackendError], depth: int) -> list[tuple[int, str, int | None]]:
        status = None if kind is BackendError else kind.status
        children = [entry for sub in kind.__subclasses__() for entry in walk(sub, depth + 1)]
        return [(depth, kind.__name__, status), *children]

    assert drawn == walk(BackendError, 0)


@pytest.mark.parametrize("kind", all_classes())
def test_body_is_shaped_as_openai_shapes_it(kind):
    status, headers, body = error_response(kind("the message", "model"))
    assert (status, headers["content-type"]) == (kind.status, "application/json")
    assert json.loads(body) == {
        "error": {"message": "the message", "type": kind.type, "param": "model", "code": kind.code}
    }


def test_codes_tell_errors_apart():
    codes = [kind.code for kind in all_classes() if kind is not InvalidRequest]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, None), (0.0, "1"), (1.2, "2"), (15.0, "15")]
)
def test_retry_after_is_whole_seconds_and_never_zero(seconds, header):
    _, headers, _ = error_response(Overloaded("full", retry_after_s=seconds))
    assert headers.get("retry-after") == header


def test_error_event_is_one_server_sent_event():
    event = error_event(ModelSwitching("line one\nline two"))
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "model_switching"
