"""What programs send besides what they ask for is left out, and named: as they send it."""

import json
from typing import Any

import pytest

from tests.gateway.conftest import CHAT, Backend, error_of
from tests.gateway.test_routes import COMPLETIONS, MESSAGES, RESPONSES, ask

HI = {"role": "user", "content": "hi"}
CALL_ID = {"id": "call_1", "call_id": "call_1", "name": "f", "arguments": "{}"}

# (the program) -> route, what it adds, what is named, and what the engine is sent instead
SENT: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "Codex CLI": (RESPONSES, {"client_metadata": {"a": "b"}}, "client_metadata"),
    "Anthropic's packages, without a thread": (MESSAGES, {"thread": None}, None),
    "Claude Code, thinking": (
        MESSAGES,
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking",
    ),
    "Open WebUI": (CHAT, {"mirostat": 1, "num_ctx": 4096}, "mirostat, num_ctx"),
    "openai, effort max": (CHAT, {"reasoning_effort": "max"}, "reasoning_effort"),
    "LlamaIndex OpenAIResponses": (RESPONSES, {"previous_response_id": None}, None),
    "promptfoo": (COMPLETIONS, {"best_of": 1, "suffix": None}, None),
    "LiteLLM's nulls": (
        CHAT,
        {"functions": None, "function_call": None, "audio": None, "web_search_options": None},
        None,
    ),
    "openai-agents' nulls": (
        RESPONSES,
        {"truncation": None, "background": None, "conversation": None, "prompt": None},
        None,
    ),
    "empty lists": (CHAT, {"tools": [], "functions": []}, None),
    "a choice among no tools": (CHAT, {"tools": [], "tool_choice": "auto"}, None),
    "a tool of the maker's": (
        RESPONSES,
        {"tools": [{"type": "web_search"}], "tool_choice": "auto"},
        "tools[].web_search",
    ),
    "LiteLLM's message sent back": (
        CHAT,
        {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": None,
                    "provider_specific_fields": {"reasoning": None},
                    "thinking_blocks": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "index": None,
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                },
            ]
        },
        "messages[].provider_specific_fields",
    ),
    "a talk begun at OpenAI": (
        RESPONSES,
        {"input": [HI, {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, HI]},
        "input[].encrypted_content",
    ),
    "openai 3.57's answer sent back": (
        RESPONSES,
        {"input": [HI, {"type": "function_call", "async_": None, "status": None} | CALL_ID]},
        None,
    ),
}


@pytest.mark.parametrize("program", SENT)
async def test_what_asks_for_nothing_is_not_sent_on(backend: Backend, program: str) -> None:
    """Answered, told in a header where it was more than nothing, and out of the engine's sight."""
    engine = await backend.serving()
    path, fields, named = SENT[program]
    async with backend.client.post(path, json=await _body(path, fields)) as response:
        raw = await response.read()
        assert response.status == 200, raw
        assert response.headers.get("X-Ignored-Fields") == named
    sent = json.loads(engine.bodies[-1])
    assert "null" not in json.dumps({k: v for k, v in sent.items() if k != "messages"})
    for name in fields.keys() - {"messages", "input"}:
        assert name not in sent


async def _body(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    from tests.gateway.conftest import A
    from tests.gateway.test_routes import BODIES

    return {"model": A} | BODIES[path] | fields


async def test_the_header_comes_with_streams_and_errors(backend: Backend) -> None:
    """Also where the request fails for another reason."""
    await backend.serving()
    async with await backend.chat(stream=True, keep_alive=5) as response:
        assert response.headers["X-Ignored-Fields"] == "keep_alive"
        await response.read()
    async with await backend.chat(keep_alive=5, n=1000) as response:
        assert response.status == 400
        assert response.headers["X-Ignored-Fields"] == "keep_alive"


async def test_the_header_is_short_and_safe_whatever_the_names(backend: Backend) -> None:
    await backend.serving()
    odd = {f"x\r\nSet-Cookie: {n} é😀" + "y" * 500: 1 for n in range(100)}
    async with await backend.chat(**odd) as response:
        assert response.status == 200
        header = response.headers["X-Ignored-Fields"]
    assert len(header) < 1500
    assert header.isascii()
    assert header.endswith("and-84-more")


async def test_a_turn_without_its_type_is_a_message(backend: Backend) -> None:
    """As the AI SDK sends the assistant's turns."""
    engine = await backend.serving()
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    status, raw = await ask(backend, RESPONSES, input=[HI, said])
    assert status == 200, raw
    assert [i["type"] for i in json.loads(engine.bodies[-1])["input"]] == ["message", "message"]


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}, "store: false"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "store: false"),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "web_search"),
        (CHAT, {"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "custom"),
        (CHAT, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
        (CHAT, {"messages": None}, "Missing required parameter: 'messages'"),
        (RESPONSES, {"input": []}, "a non-empty string or a non-empty array of items"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "an array of token IDs"),
    ],
)
async def test_what_cannot_be_done_is_said_in_the_client_s_words(
    backend: Backend, path: str, fields: dict[str, Any], word: str
) -> None:
    engine = await backend.serving()
    status, raw = await ask(backend, path, **fields)
    assert status == 400, raw
    message = json.loads(raw)["error"]["message"]
    assert word in message
    assert "constrained" not in message
    assert "--" not in message
    assert not engine.bodies


_SEARCH, _FUNCTION = {"type": "web_search"}, {"type": "function", "name": "f", "parameters": {}}
_NESTED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (RESPONSES, [_SEARCH], "required"),
        (RESPONSES, [_SEARCH], {"type": "web_search"}),
        (RESPONSES, [_SEARCH, _FUNCTION], {"type": "web_search"}),
        (RESPONSES, [_SEARCH, _FUNCTION], {"type": "function", "name": "g"}),
        (RESPONSES, [{"type": "custom", "name": "c"}, _FUNCTION], {"type": "custom", "name": "c"}),
        (RESPONSES, [_FUNCTION], {"type": "allowed_tools", "mode": "auto", "tools": []}),
        (CHAT, [], "required"),
        (CHAT, [_NESTED], {"type": "function", "function": {"name": "g"}}),
        (CHAT, [_NESTED], {"type": "function"}),
        (MESSAGES, [{"name": "f", "input_schema": {}}], {"type": "tool", "name": "g"}),
        (MESSAGES, [], {"type": "any"}),
    ],
)
async def test_a_call_that_cannot_be_made_is_not_asked_for(
    backend: Backend, path: str, tools: list[dict[str, Any]], choice: Any
) -> None:
    """A text instead of it would break the program, later and without a word of why."""
    engine = await backend.serving()
    status, raw = await ask(backend, path, tools=tools, tool_choice=choice)
    assert status == 400, raw
    assert "'tool_choice'" in json.loads(raw)["error"]["message"]
    assert not engine.bodies


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (RESPONSES, [_SEARCH, _FUNCTION], {"type": "function", "name": "f"}),
        (RESPONSES, [_SEARCH, _FUNCTION], "required"),
        (CHAT, [_NESTED], {"type": "function", "function": {"name": "f"}}),
        (MESSAGES, [{"name": "f", "input_schema": {}}], {"type": "tool", "name": "f"}),
    ],
)
async def test_a_call_that_can_be_made_is_asked_for(
    backend: Backend, path: str, tools: list[dict[str, Any]], choice: Any
) -> None:
    engine = await backend.serving()
    status, raw = await ask(backend, path, tools=tools, tool_choice=choice)
    assert status == 200, raw
    sent = json.loads(engine.bodies[-1])
    assert (sent["tool_choice"], len(sent["tools"])) == (choice, 1)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (COMPLETIONS, "best_of", True),
        (COMPLETIONS, "use_beam_search", 0),
        (CHAT, "watermarking", 0),
        (RESPONSES, "background", 0),
        (RESPONSES, "store", 0),
        (CHAT, "seed", True),
        (CHAT, "temperature", False),
        (CHAT, "structured_outputs", {"json_object": 1}),
    ],
)
async def test_a_number_is_no_yes_and_a_yes_no_number(
    backend: Backend, path: str, name: str, value: Any
) -> None:
    """Python takes 1 and true for the same; no client does."""
    engine = await backend.serving()
    status, raw = await ask(backend, path, **{name: value})
    assert status == 400, raw
    assert error_of(raw)["param"].startswith(name)
    assert not engine.bodies


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_tools_for_a_model_without_them_are_refused_by_name(
    backend: Backend, path: str
) -> None:
    """Never with an engine's flags, and never dropped without a word."""
    engine = await backend.serving("qwen-vl")
    tool = {"name": "f", "input_schema": {"type": "object"}}
    if path != MESSAGES:
        function = {"name": "f", "parameters": {"type": "object"}}
        nested = {"type": "function", "function": function}
        tool = nested if path == CHAT else {"type": "function"} | function
    status, raw = await ask(backend, path, model="qwen-vl", tools=[tool])
    assert status == 400
    assert "qwen-vl does not support tools" in json.loads(raw)["error"]["message"]
    assert not engine.bodies


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_full_window_is_told_in_the_words_that_programs_read(
    backend: Backend, path: str
) -> None:
    """Claude Code shortens its conversation by itself where it reads these."""
    engine = await backend.serving()
    text = (
        "This model's maximum context length is 8192 tokens. However, your prompt contains at "
        "least 9000 input tokens, which exceeds it."
    )
    body = {"error": {"message": text, "code": 400}}
    engine.raw_answer = (400, json.dumps(body).encode())
    _, raw = await ask(backend, path)
    if path == MESSAGES:
        message = json.loads(raw)["error"]["message"]
        assert message == "prompt is too long: 9000 tokens > 8192 maximum"
    else:
        assert "maximum context length is 8192 tokens" in error_of(raw)["message"]


async def test_an_encoded_body_is_415_and_named(backend: Backend) -> None:
    await backend.serving()
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with backend.client.post(CHAT, data=b"\x1f\x8b", headers=headers) as response:
        assert response.status == 415
        assert "gzip" in error_of(await response.read())["message"]


@pytest.mark.parametrize("tools", [{}, 5, True, "function", [5], [None]], ids=str)
async def test_tools_that_are_no_list_of_tools_are_refused(backend: Backend, tools: Any) -> None:
    """Hosted tools are left out of a list only."""
    await backend.serving()
    for path in (CHAT, RESPONSES, MESSAGES):
        status, raw = await ask(backend, path, tools=tools)
        assert status == 400, raw
        assert b"tools" in raw


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}]
)
async def test_a_thread_is_refused_in_the_words_that_have_all_messages_sent(
    backend: Backend, thread: dict[str, Any]
) -> None:
    """Left out, Anthropic's tool runners would send only what is new from the second turn on."""
    await backend.serving()
    status, raw = await ask(backend, MESSAGES, thread=thread)
    assert status == 400
    details = json.loads(raw)["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
