"""Programs written for OpenAI and Anthropic, with their own packages, against a real engine."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Literal

import anthropic
import openai
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.cluster.server import CAPITAL, Server
from tests.gateway import sse

MODEL, VISION = "qwen-14b", "qwen-vl"
HELLO = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0}  # what this version of the anthropic package has no argument for
WEATHER = {
    "strict": True,  # without, vLLM leaves a tool's arguments to the model
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    name: str
    is_capital: bool


@pytest.fixture
def serving(server: Server) -> Server:
    if server.get("/health")["resident"] != MODEL:
        assert server.switch(MODEL).status_code == 200
    server.wait_serving(MODEL)
    return server


@pytest.fixture
def client(serving: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(serving: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=serving.url, api_key="x", max_retries=0) as client:
        yield client


def test_chat_plain_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    """At temperature 0 the deltas add up to the plain answer; the usage is told once."""
    plain = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, temperature=0, max_completion_tokens=12
    )
    text = plain.choices[0].message.content
    assert text
    assert "Paris" in text
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,
            temperature=0,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    usage = [c.usage for c in chunks if c.usage]
    assert len(usage) == 1
    assert plain.usage
    assert usage[0].completion_tokens == plain.usage.completion_tokens


def test_chat_with_n_stop_seed_and_logprobs(client: openai.OpenAI) -> None:
    """The fields that programs use most do what they say."""
    many = client.chat.completions.create(
        model=MODEL, messages=HELLO, n=3, max_tokens=5, temperature=1
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    stopped = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, temperature=0, max_tokens=20, stop=["Paris"]
    )
    assert "Paris" not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"
    seeded = [
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=8, temperature=1, seed=7, presence_penalty=0.5
        )
        for _ in range(2)
    ]
    assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content
    told = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, max_tokens=3, logprobs=True, top_logprobs=2, temperature=0
    )
    logprobs = told.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_chat_with_tools(client: openai.OpenAI) -> None:
    """`auto` leaves it to the model; a named tool is called, plain and streamed, with arguments
    that fit its schema; its result can be sent back."""
    tools = [{"type": "function", "function": WEATHER}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    auto = client.chat.completions.create(
        model=MODEL, messages=question, tools=tools, tool_choice="auto", max_tokens=16
    )
    assert auto.choices[0].finish_reason in ("stop", "length", "tool_calls")
    forced = client.chat.completions.create(
        model=MODEL, messages=question, tools=tools, tool_choice=named, temperature=0, max_tokens=60
    )
    calls = forced.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert set(json.loads(calls[0].function.arguments)) == {"city"}
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=question,
        tools=tools,
        tool_choice=named,
        temperature=0,
        max_tokens=60,
        stream=True,
    )
    deltas = [c.choices[0].delta.tool_calls or [] for c in chunks if c.choices]
    arguments = "".join(call.function.arguments or "" for d in deltas for call in d)
    assert json.loads(arguments) == json.loads(calls[0].function.arguments)
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "Rain."}
    again = client.chat.completions.create(
        model=MODEL,
        messages=[*question, forced.choices[0].message, result],
        tools=tools,
        max_tokens=8,
    )
    assert again.choices[0].message.role == "assistant"


def test_chat_with_structured_output(client: openai.OpenAI) -> None:
    """An object, and an object of a certain schema, also through the package's own parser."""
    wish = [{"role": "user", "content": "Describe Paris as JSON."}]
    plain = client.chat.completions.create(
        model=MODEL,
        messages=wish,
        temperature=0,
        max_tokens=150,
        response_format={"type": "json_object"},
    )
    if plain.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(plain.choices[0].message.content or ""), dict)
    parsed = client.chat.completions.parse(
        model=MODEL, messages=wish, temperature=0, max_tokens=100, response_format=City
    )
    assert isinstance(parsed.choices[0].message.parsed, City)


def test_completions(client: openai.OpenAI) -> None:
    """Two prompts, and a stream."""
    two = client.completions.create(
        model=MODEL, prompt=["One, two,", "Red, green,"], max_tokens=4, temperature=0, logprobs=1
    )
    assert [choice.index for choice in two.choices] == [0, 1]
    chunks = client.completions.create(
        model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == two.choices[0].text


def test_responses(client: openai.OpenAI) -> None:
    """Plain, streamed, with instructions, with a whole conversation; what needs a memory of the
    engine's is refused."""
    plain = client.responses.create(
        model=MODEL, input=CAPITAL[0]["content"], temperature=0, max_output_tokens=12
    )
    assert "Paris" in plain.output_text
    assert plain.usage
    with client.responses.stream(
        model=MODEL, input=CAPITAL[0]["content"], temperature=0, max_output_tokens=12
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == plain.output_text
    talk = client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[*CAPITAL, *plain.output, {"role": "user", "content": "And of Italy?"}],
        max_output_tokens=8,
        store=False,
    )
    assert talk.object == "response"
    for fields in ({"previous_response_id": plain.id}, {"background": True}, {"store": True}):
        with pytest.raises(openai.BadRequestError, match="not stored"):
            client.responses.create(model=MODEL, input="hi", **fields)


@pytest.mark.parametrize("way", ["create", "stream", "parse"])
def test_responses_tool_loop(client: openai.OpenAI, way: str) -> None:
    """As OpenAI's guide writes it: `input += response.output`, with what the package itself puts
    into the items of an answer, then the function's result; the model reads all of it."""
    tools = [{"type": "function"} | WEATHER]
    talk: list = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 60}
    if way == "stream":
        with client.responses.stream(input=talk, tool_choice="required", **fields) as stream:
            response = stream.until_done().get_final_response()
    else:
        ask = getattr(client.responses, way)
        response = ask(input=talk, tool_choice="required", **fields)
    talk += response.output
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls
    for call in calls:
        assert call.name == "get_weather"
        assert json.loads(call.arguments).keys() == {"city"}
        talk.append({"type": "function_call_output", "call_id": call.call_id, "output": "Rain."})
    answer = client.responses.create(input=talk, **fields)
    assert answer.output
    assert answer.usage.input_tokens > response.usage.input_tokens + 5
    last = [*talk, *answer.output, {"role": "user", "content": "And in Rome?"}]
    assert client.responses.create(input=last, **fields).output


def test_chat_sends_a_parsed_tool_call_back(client: openai.OpenAI) -> None:
    """The package's own parser adds fields to the message that belongs into the next request."""
    tools = [{"type": "function", "function": WEATHER}]
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields = {"model": MODEL, "tools": tools, "temperature": 0, "max_tokens": 60}
    called = client.chat.completions.parse(messages=question, tool_choice="required", **fields)
    message = called.choices[0].message
    assert message.tool_calls
    assert message.tool_calls[0].function.parsed_arguments.keys() == {"city"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    again = client.chat.completions.create(messages=[*question, message, result], **fields)
    assert again.usage.prompt_tokens > called.usage.prompt_tokens + 5


@pytest.mark.parametrize("is_stream", [False, True])
def test_messages_tool_runner(claude: anthropic.Anthropic, is_stream: bool) -> None:
    """The package's own loop: it runs the tool that the model calls and sends the result back,
    until the turns that it may take are over."""
    cities: list[str] = []

    @anthropic.beta_tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city.

        Args:
            city: The city.
        """
        cities.append(city)
        return "Rain."

    runner = claude.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=200,  # a call takes 50 to 60, its white space is the model's
        tools=[get_weather],
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        max_iterations=2,
        stream=is_stream,
    )
    answers = [turn.get_final_message() if is_stream else turn for turn in runner]
    assert [answer.stop_reason for answer in answers] == ["tool_use", "tool_use"]
    assert len(cities) == 2
    assert set(cities) <= {"Paris", "Rome"}
    first, second = (answer.usage.input_tokens for answer in answers)
    assert second > first + 5  # the first call and its result


def test_messages(claude: anthropic.Anthropic) -> None:
    """Plain, streamed, with a system prompt, a stop sequence and a tool; and counted."""
    plain = claude.messages.create(
        model=MODEL, messages=CAPITAL, max_tokens=12, extra_body=GREEDY, system="Be brief."
    )
    assert plain.content[0].type == "text"
    assert plain.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(
        model=MODEL, messages=CAPITAL, max_tokens=12, extra_body=GREEDY, system="Be brief."
    ) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().stop_reason == plain.stop_reason
    assert text == plain.content[0].text
    tool = {
        "name": "get_weather",
        "strict": True,
        "description": WEATHER["description"],
        "input_schema": WEATHER["parameters"],
    }
    called = claude.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        max_tokens=60,
        extra_body=GREEDY,
        tools=[tool],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    use = next(block for block in called.content if block.type == "tool_use")
    assert set(use.input) == {"city"}
    assert claude.messages.count_tokens(model=MODEL, messages=CAPITAL).input_tokens > 5


def test_errors_have_the_packages_types(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """What goes wrong is told so that a program can tell it apart."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello " * 9000}]
        )
    assert long.value.code == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in str(long.value)
    with pytest.raises(openai.BadRequestError) as blind:
        client.chat.completions.create(model=MODEL, messages=see(picture()))
    assert "does not accept pictures" in str(blind.value)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nope", messages=HELLO, max_tokens=1)
    with pytest.raises(
        anthropic.BadRequestError, match="prompt is too long: 8193 tokens > 8192 maximum"
    ):
        claude.messages.create(
            model=MODEL, messages=[{"role": "user", "content": "hello " * 9000}], max_tokens=1
        )
    assert client.models.retrieve(MODEL).id == MODEL
    assert {model.id for model in client.models.list()} >= {MODEL, VISION}


def test_async_clients(serving: Server) -> None:
    """The same packages, asynchronous: plain and streamed, several at once."""

    async def run() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key="x") as client,
            anthropic.AsyncAnthropic(base_url=serving.url, api_key="x") as claude,
        ):
            asks = [
                client.chat.completions.create(
                    model=MODEL, messages=CAPITAL, temperature=0, max_tokens=10
                )
                for _ in range(4)
            ]
            texts = {answer.choices[0].message.content for answer in await asyncio.gather(*asks)}
            assert len(texts) == 1
            stream = await client.chat.completions.create(
                model=MODEL, messages=CAPITAL, temperature=0, max_tokens=10, stream=True
            )
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) in texts
            response = await client.responses.create(model=MODEL, input="Hi", max_output_tokens=4)
            assert response.object == "response"
            async with claude.messages.stream(
                model=MODEL, messages=CAPITAL, max_tokens=10, extra_body=GREEDY
            ) as messages:
                assert "".join([text async for text in messages.text_stream])

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "fields", "check"),
    [
        ("/v1/chat/completions", {"messages": CAPITAL, "max_tokens": 8}, sse.check),
        ("/v1/completions", {"prompt": "One, two,", "max_tokens": 8}, sse.check),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 8}, sse.check_responses),
        ("/v1/messages", {"messages": CAPITAL, "max_tokens": 8}, sse.check_messages),
    ],
)
def test_each_real_stream_keeps_the_rules(serving: Server, path: str, fields, check) -> None:
    """The strict reader that the fake engine's streams are read with reads the real ones."""
    with serving.http as http:
        answer = http.post(path, json={"model": MODEL, "stream": True} | fields)
    stream = check(answer.headers["content-type"], answer.content)
    assert stream.is_done


def test_tokenize_there_and_back(serving: Server) -> None:
    """A text's tokens are that text."""
    with serving.http as http:
        tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "Hello world"}).json()
        body = {"model": MODEL, "tokens": tokens["tokens"]}
        assert http.post("/detokenize", json=body).json()["prompt"] == "Hello world"


def picture(kind: str = "PNG") -> str:
    """A red square as a data address."""
    raw = io.BytesIO()
    Image.new("RGB", (56, 56), (220, 20, 20)).save(raw, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(raw.getvalue()).decode()}"


def see(*addresses: str) -> list:
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    text = {"type": "text", "text": "What colour?"}
    return [{"role": "user", "content": [text, *parts]}]


def test_pictures_on_every_route(server: Server) -> None:
    """PNG, JPEG and WebP, two in a request, in OpenAI's three ways and Anthropic's."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    claude = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
    for addresses in ((picture("PNG"), picture("JPEG")), (picture("WEBP"),)):
        answer = client.chat.completions.create(
            model=VISION, messages=see(*addresses), max_tokens=4
        )
        assert answer.usage
        assert answer.usage.prompt_tokens > 4
    content = [
        {"type": "input_text", "text": "What colour?"},
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
    ]
    response = client.responses.create(
        model=VISION, input=[{"role": "user", "content": content}], max_output_tokens=4
    )
    assert response.object == "response"
    data = picture().partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    message = claude.messages.create(
        model=VISION,
        max_tokens=4,
        messages=[{"role": "user", "content": [{"type": "image", "source": source}]}],
    )
    assert message.role == "assistant"
    with pytest.raises(openai.BadRequestError, match="accepts at most 2"):
        client.chat.completions.create(model=VISION, messages=see(*[picture()] * 3))
