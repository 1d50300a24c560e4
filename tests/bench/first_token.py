"""The moment a model can be used: its first token."""

import time

import httpx

from tests.bench.streams import body, has_token


def wait_first_token(url: str, model: str, timeout_s: float = 600) -> float:
    """`time.monotonic()` when the first token of a new request came; the rest is read, too."""
    headers = {"X-Cache": "off"}
    with httpx.stream(
        "POST",
        f"{url}/v1/chat/completions",
        json=body(model, 2),
        headers=headers,
        timeout=timeout_s,
    ) as response:
        assert response.status_code == 200, response.read()
        at = 0.0
        for line in response.iter_lines():
            if not at and has_token(line.encode()):
                at = time.monotonic()
    assert at, "a stream without a token"
    return at
