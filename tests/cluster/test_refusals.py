"""What the real engine refuses: a stream has the status and the reason that a plain request has."""

from typing import Any

import pytest

from tests.cluster.server import Server

_BAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
_HELLO = [{"role": "user", "content": "Hello"}]
_NAMED = {"type": "json_schema", "name": "answer", "schema": _BAD}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _BAD}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _HELLO, "response_format": _FORMAT},
    "/v1/completions": {"prompt": "Hello", "response_format": _FORMAT},
    "/v1/responses": {"input": "Hello", "text": {"format": _NAMED}},
    "/v1/messages": {
        "messages": _HELLO,
        "max_tokens": 9,
        "output_config": {"format": {"type": "json_schema", "schema": _BAD}},
    },
}


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_is_refused_as_a_plain_request_is(server: Server, path: str) -> None:
    """A pattern that is no regular expression: vLLM finds that out after its stream has begun."""
    body = {"model": "qwen-14b"} | BODIES[path]
    with server.http as http:
        plain, stream = (http.post(path, json=body | {"stream": s}) for s in (False, True))
    assert plain.status_code == stream.status_code == 400, (plain.text, stream.text)
    assert stream.json()["error"] == plain.json()["error"]
    assert stream.json()["error"]["message"]
