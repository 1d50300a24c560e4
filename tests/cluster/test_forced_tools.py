"""A tool that a request forces gets arguments that follow its schema, whatever the model."""

import json
from typing import Any

import pytest

from tests.cluster.server import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ASKED = [{"role": "user", "content": "Tell me about the weather."}]
FUNCTION = {"name": "weather", "parameters": SCHEMA}
NAMED = {"type": "function", "function": {"name": "weather"}}


def chat_arguments(server: Server, choice: Any) -> Any:
    tools = [{"type": "function", "function": FUNCTION}]
    answer = server.chat(
        "qwen-14b", messages=ASKED, tools=tools, tool_choice=choice, max_tokens=256
    ).json()
    return json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])


def post(server: Server, path: str, **body: Any) -> Any:
    with server.http as http:
        answer = http.post(path, json={"model": "qwen-14b"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def responses_arguments(server: Server, choice: Any) -> Any:
    tools = [{"type": "function"} | FUNCTION]
    answer = post(
        server, "/v1/responses", input=ASKED, tools=tools, tool_choice=choice, max_output_tokens=256
    )
    return json.loads(answer["output"][0]["arguments"])


def messages_arguments(server: Server, choice: Any) -> Any:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    answer = post(
        server, "/v1/messages", messages=ASKED, tools=tools, tool_choice=choice, max_tokens=256
    )
    return next(block["input"] for block in answer["content"] if block["type"] == "tool_use")


@pytest.mark.parametrize(
    ("ask", "choice"),
    [
        (chat_arguments, "required"),
        (chat_arguments, NAMED),
        (responses_arguments, "required"),
        (responses_arguments, {"type": "function", "name": "weather"}),
        (messages_arguments, {"type": "any"}),
        (messages_arguments, {"type": "tool", "name": "weather"}),
    ],
)
def test_forced_tools_arguments_follow_its_schema(server: Server, ask: Any, choice: Any) -> None:
    server.switch("qwen-14b")
    server.wait_serving("qwen-14b")
    for _ in range(3):
        arguments = ask(server, choice)
        assert arguments.keys() == {"city", "days"}, arguments
        assert arguments["city"] in ("Paris", "Rome")
        assert arguments["days"] in (1, 2, 3)
