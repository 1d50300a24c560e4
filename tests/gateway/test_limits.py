"""What one request may ask for: the table of fields, and limits that no client lifts."""

import json
from typing import Any

import pytest

from serve_app.protocol.calls import CALLS
from serve_app.protocol.openai import ChatBody
from serve_app.protocol.refused import REFUSED
from tests.gateway.conftest import CHAT, A, Backend, error_of
from tests.gateway.test_routes import BODIES, COMPLETIONS, MESSAGES, RESPONSES, ask


async def refused(backend: Backend, path: str, **fields: Any) -> dict[str, Any]:
    """The error of a request that no engine saw."""
    engine = await backend.serving()
    status, raw = await ask(backend, path, **fields)
    assert status == 400, raw
    assert not engine.bodies
    return json.loads(raw)["error"] if path.startswith(MESSAGES) else error_of(raw)


@pytest.mark.parametrize("field", REFUSED)
async def test_a_refused_field_is_refused_with_its_reason(backend: Backend, field: str) -> None:
    """On every route that does not take it; null asks for nothing, and is no more sent on."""
    engine = await backend.serving()
    for call in CALLS:
        if field not in call.body.model_fields and call.task == "generate":
            status, raw = await ask(backend, call.path, **{field: 3})
            assert status == 400
            assert REFUSED[field] in json.loads(raw)["error"]["message"]
            assert (await ask(backend, call.path, **{field: None}))[0] == 200
            assert field not in json.loads(engine.bodies[-1])


def test_no_field_is_both_allowed_and_refused_for_chat() -> None:
    """The table does not contradict itself."""
    assert not set(REFUSED) & set(ChatBody.model_fields)


@pytest.mark.parametrize("limits", [{"unknown_fields": "refuse"}])
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/embeddings"])
async def test_an_unknown_field_is_refused_where_the_settings_say_so(
    backend: Backend, path: str
) -> None:
    """As OpenAI does."""
    error = await refused(backend, path, temprature=1)
    assert error["code"] == "unknown_parameter"
    assert "'temprature'" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "user": "u"},
        {"prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low"},
        {"stream_options": None, "tools": None, "stop": None, "n": None, "logit_bias": None},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "hi"}]}]},
        {
            "messages": [
                {"role": "assistant", "content": None, "refusal": None, "annotations": []},
                {"role": "tool", "tool_call_id": "1", "content": "x", "name": "f"},
            ]
        },
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
        {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "seed": -1},
    ],
)
async def test_what_programs_send_is_taken(backend: Backend, fields: dict[str, Any]) -> None:
    """Fields that ask nothing of a model, nulls, and messages as the packages write them."""
    await backend.serving()
    status, raw = await ask(backend, CHAT, **fields)
    assert status == 200, raw


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"n": 33}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 33}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 17, "n": 2}, "n"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (RESPONSES, {"top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"stop": ["a"] * 17}, "stop"),
        (CHAT, {"tools": [{"type": "function"}] * 129}, "tools"),
        (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"x": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"1": 101}}, "logit_bias"),
        (CHAT, {"temperature": "1"}, "temperature"),
        (CHAT, {"max_tokens": 1.0}, "max_tokens"),
        (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        (CHAT, {"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
        (CHAT, {"response_format": {"type": "structural_tag"}}, "response_format"),
        (CHAT, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"store": True}, "store"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (RESPONSES, {"input": []}, "input"),
    ],
)
async def test_past_a_limit_is_400_and_names_the_field(
    backend: Backend, path: str, fields: dict[str, Any], param: str
) -> None:
    """Before anything is asked of an engine, or switched for."""
    error = await refused(backend, path, **fields)
    assert error["param"].startswith(param), error


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (RESPONSES, "max_output_tokens"),
        (MESSAGES, "max_tokens"),
    ],
)
async def test_a_length_past_the_context_is_lowered(
    backend: Backend, path: str, field: str
) -> None:
    """Programs ask any model for 32,000 tokens; what the prompt leaves is the engine's to say."""
    engine = await backend.serving()
    status, raw = await ask(backend, path, **{field: 32_000})
    assert status == 200, raw
    assert json.loads(engine.bodies[-1])[field] == 8191


@pytest.mark.parametrize("limits", [{"max_choices": 2, "max_stop": 1, "max_tools": 1}])
async def test_the_limits_are_the_settings(backend: Backend) -> None:
    """What is allowed is allowed to the last, and not one more."""
    await backend.serving()
    tool = {"type": "function", "function": {"name": "f"}}
    for field, at, past in (
        ("n", 2, 3),
        ("stop", ["a"], ["a", "b"]),
        ("tools", [tool], [tool, tool]),
    ):
        assert (await ask(backend, CHAT, **{field: at}))[0] == 200
        assert (await ask(backend, CHAT, **{field: past}))[0] == 400
    assert (await ask(backend, MESSAGES, stop_sequences=["a", "b"]))[0] == 400


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def loop() -> dict[str, Any]:
    b = {"$ref": "#/$defs/a"}
    return {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": b}, "$ref": "#/$defs/a"}


BAD_SCHEMAS = {
    "deep": nested(33),
    "wide": {"properties": {f"p{i}": {} for i in range(301)}},
    "elsewhere": {"$ref": "http://127.0.0.1/x"},
    "a file": {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "itself": {"$ref": "#"},
    "in a circle": loop(),
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
async def test_a_schema_no_compiler_should_see_is_400(
    backend: Backend, schema: dict[str, Any]
) -> None:
    """In every place where a request can have one."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    function = {"name": "f", "parameters": schema}
    for path, fields in (
        (CHAT, {"response_format": wanted}),
        (CHAT, {"structured_outputs": {"json": schema}}),
        (CHAT, {"tools": [{"type": "function", "function": function}]}),
        (COMPLETIONS, {"response_format": wanted}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": schema}]}),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": schema}]}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": schema}}}),
    ):
        await refused(backend, path, **fields)


async def test_a_schema_of_trees_is_taken(backend: Backend) -> None:
    """A reference to what holds it is how trees are written."""
    await backend.serving()
    tree = {"type": "object", "properties": {"children": {"items": {"$ref": "#"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": tree}}
    assert (await ask(backend, CHAT, response_format=wanted))[0] == 200


@pytest.mark.parametrize(
    ("status", "body", "expected", "code", "word"),
    [
        (400, b'{"detail":"There was an error parsing the body"}', 400, None, "parsing"),
        (422, b'{"detail":[{"loc":["body"],"msg":"field required"}]}', 400, None, "required"),
        (404, b'{"detail":"Not Found"}', 404, "not_found", "Not Found"),
        (500, b"<html>Internal Server Error</html>", 500, "internal_error", "could not answer"),
        (503, b"{}", 503, "engine_restarting", "ended"),
        (501, b'{"error":{"message":"no such thing"}}', 400, None, "no such thing"),
        (
            400,
            b'{"error":{"message":"This model\'s maximum context length is 8192 tokens. However, '
            b'your prompt contains at least 8193 input tokens, which exceeds","code":400}}',
            400,
            "context_length_exceeded",
            "resulted in at least 8193 tokens. Please reduce the length of the messages.",
        ),
        (
            400,
            b"{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'x', 'loc': 'body.stop',"
            b" 'msg': 'Input should be a valid string', 'input': 1}\",\"param\":\"body.stop\"}}",
            400,
            None,
            "Input should be a valid string",
        ),
    ],
)
async def test_the_engine_s_errors_come_in_shape(
    backend: Backend, status: int, body: bytes, expected: int, code: str | None, word: str
) -> None:
    """Whatever it says, and in whichever shape."""
    engine = await backend.serving()
    engine.raw_answer = (status, body)
    got, raw = await ask(backend, CHAT)
    assert got == expected, raw
    error = error_of(raw)
    assert error["code"] == code
    assert word in error["message"]


@pytest.mark.parametrize(
    "inside",
    [
        "[21:15:21] /project/cpp/regex_converter.cc:83: Two modifiers",
        "see <object Grammar at 0x7f3312aa10> for Two modifiers",
        'File "/usr/lib/python3/vllm/x.py", line 3, in f: Two modifiers',
        "/home/user/models/qwen/config.json: Two modifiers" + "x" * 9000,
    ],
)
async def test_the_engine_s_inside_is_not_told(backend: Backend, inside: str) -> None:
    """No path, no address, no more than a few hundred characters."""
    engine = await backend.serving()
    engine.raw_answer = (400, json.dumps({"error": {"message": inside, "code": 400}}).encode())
    _, raw = await ask(backend, CHAT)
    message = error_of(raw)["message"]
    assert "Two modifiers" in message
    assert len(message) <= 600
    for word in ("/project", "0x7f", "/usr", "/home", ".json"):
        assert word not in message


async def test_headers_without_end_are_431(backend: Backend) -> None:
    """Serve's proxy has no limit of its own."""
    await backend.serving()
    headers = {f"x-{number}": "x" * 5000 for number in range(7)}
    async with backend.client.get("/health", headers=headers) as response:
        assert response.status == 431
        assert error_of(await response.read())["code"] == "headers_too_large"


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Request-Disconnect-Disabled", "?1"), ("X-Request-Timeout-Seconds", "2")],
)
async def test_a_client_can_not_steer_serve(backend: Backend, name: str, value: str) -> None:
    """Serve's proxy would not tell that it leaves, or cut its stream without a word."""
    await backend.serving()
    headers = {name: value}
    async with backend.client.get("/health", headers=headers) as response:
        assert response.status == 400
        error_of(await response.read())


def test_every_limit_has_a_reason() -> None:
    """The file says of each what it is for."""
    from deployments.settings import PROJECT, Limits

    lines = (PROJECT / "configs" / "backend.yaml").read_text().splitlines()
    for name in Limits.model_fields:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}:"))
        assert lines[at - 1].strip().startswith("#"), name


def test_the_model_of_tests_has_8192_tokens(settings: Any) -> None:
    """What the limits above lean on."""
    assert settings.models[A].engine.max_model_len == 8192
