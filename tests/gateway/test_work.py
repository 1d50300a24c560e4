"""What a request may cost, whatever it holds: time of the gateway's loop, memory, and grammars."""

import asyncio
import gc
import io
import json
import time
from typing import Any

import psutil
import pytest

from tests.gateway.conftest import CHAT, A, Backend, error_of
from tests.gateway.test_routes import COMPLETIONS, MESSAGES, RESPONSES

HI = b'"messages":[{"role":"user","content":"hi"}]'
MIB = 2**20


def body(start: bytes, piece: bytes, end: bytes, num_bytes: int) -> bytes:
    """`start`, as many pieces as have `num_bytes`, and `end`; without the last piece's comma."""
    pieces = piece * (num_bytes // len(piece))
    return b'{"model":"%s",' % A.encode() + start + pieces.removesuffix(b",") + end + b"}"


# (route, start, piece, end): a body that multiplies what it takes to check it
WORST: dict[str, tuple[str, bytes, bytes, bytes]] = {
    "prompt of objects": (COMPLETIONS, b'"prompt":[', b"{},", b"]"),
    "prompt of tokens": (COMPLETIONS, b'"prompt":[', b"1,", b"]"),
    "prompt of lists": (COMPLETIONS, b'"prompt":[', b"[],", b"]"),
    "messages of numbers": (CHAT, b'"messages":[', b"0,", b"]"),
    "biases": (CHAT, HI + b',"logit_bias":{', b'"1":1,', b"}"),
    "unknown fields": (CHAT, HI, b',"x":1', b""),
    "objects in objects": (CHAT, b'"messages":[', b'{"a":{"b":{}}},', b"]"),
    "brackets": (CHAT, b'"messages":', b"[", b""),
    "input of items": (RESPONSES, b'"input":[', b'{"role":"user"},', b"]"),
    "blocks": (MESSAGES, b'"max_tokens":1,"messages":[', b'{"role":"user","content":[]},', b"]"),
    "stop words": (CHAT, HI + b',"stop":[', b'"a",', b"]"),
    "one text": (CHAT, b'"messages":[{"role":"user","content":"\xf0\x9f\x98\x80', b"x", b'"}]'),
    "escapes": (CHAT, b'"messages":[{"role":"user","content":"', b"\\u00e9", b'"}]'),
}


async def longest_health_s(backend: Backend, done: asyncio.Event) -> float:
    """The longest that this process, gateway and client, worked on others' requests while another
    client waited for `GET /health`, until `done`. What other programs add is not counted."""
    longest = 0.0
    while not done.is_set():
        began = time.process_time()
        async with backend.client.get("/health") as response:
            assert response.status == 200
        longest = max(longest, time.process_time() - began)
    return longest


async def post(backend: Backend, path: str, raw: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json", "X-Cache": "off"}
    async with backend.client.post(path, data=io.BytesIO(raw), headers=headers) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("limits", [{"max_body_bytes": 20 * MIB}])
@pytest.mark.parametrize("num_bytes", [MIB // 5, 2 * MIB, 19 * MIB])
@pytest.mark.parametrize("kind", WORST)
async def test_nobody_else_waits_for_the_worst_body(
    backend: Backend, kind: str, num_bytes: int
) -> None:
    """Whatever becomes of it, within a second or two; generous bounds on a shared machine."""
    await backend.serving()
    path, *pieces = WORST[kind]
    raw = body(*pieces, num_bytes)
    gc.collect()
    gc.freeze()  # as the gateway does when it starts
    done = asyncio.Event()
    looking = asyncio.create_task(longest_health_s(backend, done))
    before = psutil.Process().memory_info().rss
    began = time.process_time()
    status, answer = await post(backend, path, raw)
    took_s = time.process_time() - began
    done.set()
    longest_s = await looking
    grown = psutil.Process().memory_info().rss - before
    print(f"{kind}, {num_bytes}: {status}, {took_s:.2f} s, /health {longest_s:.3f} s, +{grown} B")
    assert status in (200, 400), answer[:200]
    if status == 400:
        assert len(answer) < 2048
    assert took_s < 5
    assert longest_s < 1
    assert grown < 10 * len(raw) + 64 * MIB


@pytest.mark.parametrize("size", [1_000, 100_000, 2_000_000])
async def test_what_the_engine_repeats_costs_no_time(backend: Backend, size: int) -> None:
    """The engine's error quotes what the client sent, in the very words that are looked for."""
    engine = await backend.serving()
    for piece in ("'msg': '", "maximum context length is 1 tokens ", "/a/a.", '", line 1'):
        message = json.dumps({"error": {"message": piece * (size // len(piece)), "code": 400}})
        engine.raw_answer = (400, message.encode())
        began = time.process_time()
        status, raw = await post(backend, CHAT, json.dumps({"model": A} | CHATTED).encode())
        assert status == 400
        assert len(error_of(raw)["message"]) < 700
        assert time.process_time() - began < 1


CHATTED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def props(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": s for n, s in enumerate(schemas)}}


def text(**fields: Any) -> dict[str, Any]:
    return {"type": "string"} | fields


def lists(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": lists(depth - 1)} if depth else text()


def as_form(schema: dict[str, Any]) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": A, "response_format": wanted} | CHATTED


SLOW_SCHEMAS = {
    "lists in lists": props([lists(28)] * 200),
    "long names": {"type": "object", "properties": {"x" * 1000 + str(n): {} for n in range(100)}},
    "a long description": text(description="x" * 100_000),
    "words": {"enum": [f"word {n}" for n in range(20_000)]},
    "long words": {"enum": ["x" * 30_000]},
    "alternatives": text(pattern="|".join(f"a{n}" for n in range(20_000))),
    "repetitions": text(pattern="^(([a-z]{1,30} ){1,30},){1,30}$"),
    "a long repetition": text(pattern="^.{0,129}$"),
    "a name's pattern": {"patternProperties": {"^.{0,5000}$": {}}},
}
WRONG_SCHEMAS = {
    "negative": text(minLength=-1),
    "fraction": text(maxLength=1.5),
    "text": text(maxLength="3"),
    "too large": text(maxLength=2**70),
    "crossed": text(minLength=3, maxLength=2),
    "no such type": {"type": "strin"},
    "no list": {"enum": "a"},
    "nothing to choose": {"enum": []},
    "properties": {"properties": [1]},
    "a property": {"properties": {"a": 7}},
    "branches": {"anyOf": [3]},
    "reference": {"$ref": "#/$defs/nowhere"},
    "pattern": {"type": "string", "pattern": 3},
    "beyond 64 bits": {"type": "integer", "minimum": 10**30},
}
SCHEMAS = SLOW_SCHEMAS | WRONG_SCHEMAS


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
async def test_a_schema_that_costs_or_is_none_reaches_no_engine(
    backend: Backend, schema: dict[str, Any]
) -> None:
    """Wherever a request can have one."""
    engine = await backend.serving()
    inside = props([schema])
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": inside}}
    tool = {"type": "function", "function": {"name": "f", "parameters": inside}}
    form = {"format": {"type": "json_schema", "name": "x", "schema": inside}}
    for path, fields in (
        (CHAT, CHATTED | {"response_format": wanted}),
        (CHAT, CHATTED | {"structured_outputs": {"json": inside}}),
        (CHAT, CHATTED | {"tools": [tool], "tool_choice": "required"}),
        (RESPONSES, {"input": "hi", "text": form}),
        (
            MESSAGES,
            CHATTED
            | {"max_tokens": 1, "tool_choice": {"type": "any"}}
            | {"tools": [{"name": "f", "input_schema": inside}]},
        ),
    ):
        raw = json.dumps({"model": A} | fields).encode()
        status, answer = await post(backend, path, raw)
        assert status == 400, (path, answer)
    assert not engine.bodies


async def test_the_work_of_all_tools_is_counted_together(backend: Backend) -> None:
    """Each of them would pass."""
    engine = await backend.serving()
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": props([schema])}}
        for n, schema in enumerate(text(pattern=f"^.{{0,10{n}}}$") for n in range(10))
    ]
    forced = CHATTED | {"tool_choice": "required"}
    raw = json.dumps({"model": A, "tools": tools} | forced).encode()
    assert (await post(backend, CHAT, raw))[0] == 400
    assert not engine.bodies
    raw = json.dumps({"model": A, "tools": tools[:2]} | forced).encode()
    assert (await post(backend, CHAT, raw))[0] == 200
    sent = json.loads(engine.bodies[-1])["tools"]
    assert [tool["function"]["strict"] for tool in sent] == [True, True]


LENGTHS = "response_format.maxLength"
COUNTS = "response_format.minProperties"
# (bounds of texts, or of the number of properties) -> what stays of them, and what is named
BOUNDS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str | None]] = {
    "short": ([text(maxLength=80), text(maxLength=120)],) * 2 + (None,),
    "one, often": ([text(minLength=1, maxLength=200)] * 50,) * 2 + (None,),
    "pydantic's": (
        [text(maxLength=4096), text(maxLength=100), text(minLength=1, maxLength=1000)],
        [text(), text(maxLength=100), text(minLength=1)],
        LENGTHS,
    ),
    "many": (
        [text(maxLength=90 + n) for n in range(9)],
        [text(maxLength=90), text(maxLength=91)] + [text()] * 7,
        LENGTHS,
    ),
    "both long": (
        [text(minLength=900, maxLength=1000)],
        [text()],
        f"{LENGTHS}, response_format.minLength",
    ),
    "some properties": ([props([text()] * 5) | {"minProperties": 1}] * 9,) * 2 + (None,),
    "too many": (
        [props([text()] * 60) | {"minProperties": 1}, props([text()] * 9) | {"minProperties": 1}],
        [props([text()] * 60), props([text()] * 9) | {"minProperties": 1}],
        COUNTS,
    ),
    "lists": ([{"type": "array", "items": text(), "maxItems": 100_000}],) * 2 + (None,),
}


@pytest.mark.parametrize("kind", BOUNDS)
async def test_bounds_that_cost_too_much_are_left_out_and_named(
    backend: Backend, kind: str
) -> None:
    """Without them the schema only allows more; real programs send lengths of thousands."""
    engine = await backend.serving()
    given, expected, named = BOUNDS[kind]
    async with backend.client.post(CHAT, json=as_form(props(given))) as response:
        assert response.status == 200, await response.text()
        assert response.headers.get("X-Ignored-Fields") == named
    assert json.loads(engine.bodies[-1]) == as_form(props(expected))


@pytest.mark.parametrize("limits", [{"unknown_fields": "refuse"}])
async def test_bounds_that_cost_too_much_are_refused_where_nothing_is_left_out(
    backend: Backend,
) -> None:
    engine = await backend.serving()
    status, raw = await post(
        backend, CHAT, json.dumps(as_form(props([text(maxLength=201)]))).encode()
    )
    assert status == 400
    assert "`maxLength` takes too long to compile" in error_of(raw)["message"]
    assert not engine.bodies


async def test_the_tools_of_a_large_program_are_taken_when_one_must_be_called(
    backend: Backend,
) -> None:
    """As large as Claude Code's: 25, with 74 kB."""
    await backend.serving()
    schema = props([text(description="d" * 280) for _ in range(10)])
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": schema}} for n in range(25)
    ]
    fields = {"model": A, "tools": tools, "tool_choice": "required"} | CHATTED
    status, raw = await post(backend, CHAT, json.dumps(fields).encode())
    assert status == 200, raw


async def test_tools_that_may_be_called_are_not_compiled_and_not_counted(backend: Backend) -> None:
    """Whatever schemas they bring: the engine is not asked to hold the model to them."""
    engine = await backend.serving()
    schemas = [text(maxLength=200 + n, pattern="^.{1,200}$") for n in range(10)]
    tool = {"type": "function", "function": {"name": "f", "parameters": props(schemas)}}
    raw = json.dumps({"model": A, "tools": [tool]} | CHATTED).encode()
    assert (await post(backend, CHAT, raw))[0] == 200
    assert engine.bodies == [raw]


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "a{1,5000}"},
        {"regex": "|".join(f"a{n}" for n in range(20_000))},
        {"choice": [f"a{n}" for n in range(20_000)]},
        {"grammar": "root ::= " + "[a-z] " * 5000},
        {"grammar": "root ::= ([a-z]{1,100} ){1,100}"},
    ],
)
async def test_the_engine_s_own_constraints_are_bounded(
    backend: Backend, constraint: dict[str, Any]
) -> None:
    engine = await backend.serving()
    raw = json.dumps({"model": A, "structured_outputs": constraint} | CHATTED).encode()
    status, answer = await post(backend, CHAT, raw)
    assert status == 400
    assert error_of(answer)["param"].startswith("structured_outputs")
    assert not engine.bodies


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"\xed\xa0\x80"}',
        b'{"\xed\xa0\x80":1}',
        b'{"\\ud800":1}',
        b'{"a":"\\udc00"}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":-Infinity}',
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b"",
    ],
)
async def test_what_is_no_json_is_400(backend: Backend, raw: bytes) -> None:
    await backend.serving()
    status, answer = await post(backend, CHAT, raw)
    assert status == 400
    error_of(answer)
