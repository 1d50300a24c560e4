"""Clients of a soak: programs with the makers' own packages, who enter how each request ended."""

import base64
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import httpx2
import openai

from deployments.model_server.golden_probe import red_disc
from tests.cluster.ledger import CLIENT_TIMEOUT_S, Ledger, note_refusal
from tests.cluster.server import CAPITAL

TEXT_MODELS = ("qwen-14b", "qwen-coder")
VISION = "qwen-vl"
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
_PICTURE = "data:image/png;base64," + base64.b64encode(red_disc()).decode()


@dataclass
class World:
    """What all clients share."""

    url: str
    resident: str = TEXT_MODELS[0]  # what was last switched to
    stop: threading.Event = field(default_factory=threading.Event)
    unexpected: list[str] = field(default_factory=list)  # of the soak itself


@dataclass
class Client:
    """One that asks one thing after another."""

    world: World
    choose: random.Random
    ledger: Ledger

    def __post_init__(self) -> None:
        options = {"max_retries": 0, "timeout": CLIENT_TIMEOUT_S}
        self.gpt = openai.OpenAI(base_url=f"{self.world.url}/v1", api_key="x", **options)
        self.claude = anthropic.Anthropic(base_url=self.world.url, api_key="x", **options)

    def close(self) -> None:
        self.gpt.close()
        self.claude.close()

    def model(self) -> str:
        """The resident one, as a rule: else most of the time would go to loading."""
        return (
            self.choose.choice(TEXT_MODELS) if self.choose.random() < 0.05 else self.world.resident
        )

    def text_model(self) -> str:
        model = self.model()
        return self.choose.choice(TEXT_MODELS) if model == VISION else model

    def question(self) -> list[dict[str, Any]]:
        """Mostly another one, so that it is not answered from the cache."""
        number = self.choose.randrange(1000)
        return [{"role": "user", "content": f"{number}. {CAPITAL[0]['content']}"}]

    def complete(self, is_right: bool, what: str) -> None:
        if is_right:
            self.ledger.counts["complete"] += 1
        else:
            self.ledger.lost.append(f"200, but {what}")

    # --- what they do ---

    def chat(self) -> None:
        model, tokens = self.model(), self.choose.choice([1, 8, 32])
        raw = self.gpt.chat.completions.with_raw_response.create(
            model=model, messages=self.question(), temperature=0, max_tokens=tokens
        )
        answer = raw.parse()
        is_right = answer.model == model == raw.headers["x-model"]
        is_right = is_right and answer.choices[0].finish_reason in ("stop", "length")
        self.complete(is_right, f"{model} was asked: {answer!r:.300}")

    def stream(self) -> None:
        chunks = self.gpt.chat.completions.create(
            model=self.model(),
            messages=self.question(),
            max_tokens=self.choose.choice([8, 32, 64]),
            stream=True,
        )
        ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        self.complete(bool(ends) and ends[-1] in ("stop", "length"), f"a stream ended {ends[-1:]}")

    def responses(self) -> None:
        events = self.gpt.responses.create(
            model=self.model(), input=self.question(), max_output_tokens=16, stream=True
        )
        last = [event.type for event in events][-1:]
        if last == ["error"]:
            self.ledger.counts["error event"] += 1
        else:
            is_right = last in (["response.completed"], ["response.incomplete"])
            self.complete(is_right, f"a stream of responses ended with {last}")

    def tool(self) -> None:
        answer = self.gpt.chat.completions.create(
            model=self.text_model(),
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            max_tokens=40,
        )
        calls = answer.choices[0].message.tool_calls or []
        is_cut = answer.choices[0].finish_reason == "length"
        is_right = is_cut or bool(
            calls and set(json.loads(calls[0].function.arguments)) == {"city"}
        )
        self.complete(is_right, f"a tool was called so: {answer!r:.300}")

    def picture(self) -> None:
        content = [
            {"type": "image_url", "image_url": {"url": _PICTURE}},
            {"type": "text", "text": "What colour is the disc?"},
        ]
        answer = self.gpt.chat.completions.create(
            model=VISION,
            messages=[{"role": "user", "content": content}],
            max_tokens=8,
            temperature=0,
        )
        text = answer.choices[0].message.content or ""
        self.complete("red" in text, f"the red disc is {text!r}")

    def embed(self) -> None:
        made = self.gpt.embeddings.create(model=VISION, input=["red", str(self.choose.random())])
        self.complete(len(made.data) == 2, f"{len(made.data)} embeddings of two texts")

    def message(self) -> None:
        answer = self.claude.messages.create(
            model=self.model(), messages=self.question(), max_tokens=self.choose.choice([4, 16])
        )
        self.complete(answer.stop_reason is not None, f"a message without a stop_reason: {answer}")

    def message_stream(self) -> None:
        events = self.claude.messages.create(
            model=self.model(), messages=self.question(), max_tokens=24, stream=True
        )
        last = [event.type for event in events][-1:]
        self.complete(last == ["message_stop"], f"a stream of messages ended with {last}")

    def count(self) -> None:
        counted = self.claude.messages.count_tokens(model=self.text_model(), messages=CAPITAL)
        self.complete(counted.input_tokens > 5, f"{counted.input_tokens} tokens were counted")


def ask(ledger: Ledger, act: Callable[[], None]) -> None:
    """One request; what the packages raise becomes its entry."""
    try:
        act()
    except (openai.APIStatusError, anthropic.APIStatusError) as exc:
        if exc.status_code == 200:  # anthropic's word for an event of a stream that had begun
            _event(ledger, str(exc))
        else:
            note_refusal(exc.response, ledger)
    except (openai.APIConnectionError, anthropic.APIConnectionError) as exc:
        ledger.note_broken(_broken(exc.__cause__ or exc))
    except (openai.APIError, anthropic.APIError) as exc:
        _event(ledger, str(exc))
    except httpx2.HTTPError as exc:
        ledger.note_broken(_broken(exc))


def _event(ledger: Ledger, text: str) -> None:
    ledger.counts["error event"] += 1
    ledger.errors.append(text)


def _broken(exc: BaseException) -> httpx.HTTPError:
    """The packages speak by httpx2; the ledger knows httpx, which has the same names."""
    kind = getattr(httpx, type(exc).__name__, httpx.ReadTimeout)
    made: httpx.HTTPError = kind(str(exc))
    return made
