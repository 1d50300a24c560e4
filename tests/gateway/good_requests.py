"""Right requests of every route to an engine, rich enough that there is something to spoil."""

import base64
from typing import Any

from deployments.model_server.golden_probe import red_disc

MODEL = "qwen-vl"  # it sees, and has both tasks
_PICTURE = base64.b64encode(red_disc()).decode()
_URL = f"data:image/png;base64,{_PICTURE}"
_CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20, "description": "Which."},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": _CITY}
_HI = [{"role": "user", "content": "hi"}]
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}

GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"},
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            ],
            "tools": [{"type": "function", "function": _FUNCTION}],
            "tool_choice": "auto",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["."],
            "logit_bias": {"5": -1},
            "seed": 1,
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What colour?"},
                        {"type": "image_url", "image_url": {"url": _URL, "detail": "auto"}},
                    ],
                }
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": _CITY, "strict": True},
            },
            "n": 2,
            "max_tokens": 8,
        },
        {
            "messages": _HI,
            "structured_outputs": {"json": _CITY},
            "logprobs": True,
            "top_logprobs": 2,
            "metadata": {"run": "1"},
            "max_tokens": 8,
        },
    ],
    "/v1/completions": [
        {"prompt": "def add(a, b):", "max_tokens": 8, "stop": "\n", "logprobs": 1},
        {
            "prompt": [[1, 2, 3], [4]],
            "stream": True,
            "response_format": {"type": "json_object"},
            "stop_token_ids": [2],
            "max_tokens": 8,
        },
    ],
    "/v1/responses": [
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "get_weather",
                    "arguments": "{}",
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": _URL, "detail": "auto"}],
                },
            ],
            "instructions": "Be brief.",
            "tools": [{"type": "function", "strict": True} | _FUNCTION],
            "max_output_tokens": 8,
        },
        {
            "input": "hi",
            "stream": True,
            "text": {"format": {"type": "json_schema", "name": "city", "schema": _CITY}},
            "reasoning": {"effort": "low"},
            "store": False,
            "max_output_tokens": 8,
        },
    ],
    "/v1/messages": [
        {
            "max_tokens": 8,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"a": 1}}
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": "Rain."},
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": _PICTURE,
                            },
                        },
                    ],
                },
            ],
            "tools": [{"name": "get_weather", "description": "It.", "input_schema": _CITY}],
            "tool_choice": {"type": "auto"},
            "metadata": {"user_id": "ann"},
        },
        {"max_tokens": 8, "messages": _HI, "stream": True, "stop_sequences": ["."], "top_k": 5},
    ],
    "/v1/messages/count_tokens": [
        {
            "messages": _HI,
            "system": "Be brief.",
            "tools": [{"name": "get_weather", "input_schema": _CITY}],
        }
    ],
    "/v1/embeddings": [
        {"input": ["red", "blue"], "encoding_format": "float", "user": "ann"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": _URL}}],
                }
            ]
        },
    ],
    "/tokenize": [{"prompt": "hi"}, {"messages": _HI, "add_generation_prompt": True}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
