"""What the real engine says at the end of its window: in each dialect's own words."""

from typing import Any

import pytest

from tests.cluster.server import Server

MODEL, WINDOW = "qwen-vl", 4096  # the demo's smallest: a whole window takes seconds
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
LENGTHS = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}


@pytest.fixture(scope="module")
def seeing(server: Server) -> Server:
    if server.get("/health")["resident"] != MODEL:
        assert server.switch(MODEL).status_code == 200
    server.wait_serving(MODEL)
    return server


def asked(path: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    prompt = {"input": text} if path == RESPONSES else {"messages": messages}
    return {"model": MODEL, LENGTHS[path]: 200} | prompt


def num_tokens(server: Server, text: str) -> int:
    with server.http as http:
        answer = http.post(
            "/tokenize", json={k: asked(CHAT, text)[k] for k in ("model", "messages")}
        )
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["count"]
    return count


def filling(server: Server, room: int) -> str:
    """A text that leaves at most so many tokens of the window."""
    low, high = 1, WINDOW
    while low < high:  # the longest that does not
        middle = (low + high + 1) // 2
        if num_tokens(server, "red " * middle) <= WINDOW - room:
            low = middle
        else:
            high = middle - 1
    return "red " * low


def answer(server: Server, path: str, text: str) -> tuple[int, dict[str, Any]]:
    with server.http as http:
        response = http.post(path, json=asked(path, text), timeout=180)
    return response.status_code, response.json()


@pytest.mark.timeout(500)
def test_an_answer_that_the_window_cuts_says_so(seeing: Server) -> None:
    """The prompt fits, and not all of the 200 tokens that are asked for besides."""
    text = filling(seeing, room=2)
    status, chat = answer(seeing, CHAT, text)
    assert (status, chat["choices"][0]["finish_reason"]) == (200, "length"), chat
    assert chat["usage"]["total_tokens"] <= WINDOW
    status, message = answer(seeing, MESSAGES, text)
    assert (status, message["stop_reason"]) == (200, "max_tokens"), message
    status, response = answer(seeing, RESPONSES, text)
    assert (status, response["status"]) == (200, "incomplete"), response
    assert response["incomplete_details"]["reason"] == "max_output_tokens"


@pytest.mark.parametrize("path", LENGTHS)
def test_a_prompt_past_the_window_is_told_in_its_dialect(seeing: Server, path: str) -> None:
    status, error = answer(seeing, path, "red " * (2 * WINDOW))
    assert status == 400, error
    message, code = error["error"]["message"], error["error"]["code"]
    assert code == "context_length_exceeded"
    if path == MESSAGES:
        assert message.startswith("prompt is too long: ")
        assert message.endswith(f" tokens > {WINDOW} maximum")
    else:
        assert message.startswith(f"This model's maximum context length is {WINDOW} tokens.")
