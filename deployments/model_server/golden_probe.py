"""The known question for each task, and the comparison of its answers. Pure.

The answer of a chat engine is a text, compared token by token. The answer of an embedding engine is
an embedding, compared by its direction.
"""

import base64
import math
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from deployments.settings import Golden, ModelSpec

_NUM_ALTERNATIVES = 2  # the chosen token and the runner-up

Record = dict[str, Any]  # an answer, as JSON


class Probe(Protocol):
    """A question, and the way to read and compare its answers."""

    path: str  # in the engine's API

    def body(self) -> dict[str, Any]:
        """The request's body."""

    def read(self, answer: Any) -> Record:
        """The part of an answer that is recorded.

        Raises:
            ValueError: the answer is wrong without any comparison; the message says why.
            KeyError, TypeError, IndexError: the response has no answer.
        """

    def difference(self, recorded: Record, actual: Record) -> str | None:
        """The difference that is larger than the tolerance; None if there is none.

        Raises:
            KeyError, TypeError, ValueError: `recorded` is damaged.
        """


def probe_for(spec: ModelSpec) -> Probe:
    return EmbeddingProbe(spec) if spec.task == "embed" else TextProbe(spec)


@dataclass(frozen=True)
class Token:
    """One token of the answer, with natural log-probabilities."""

    text: str
    logprob: float
    runner_up: float  # log-probability of the next likely token


def compare(expected: list[Token], actual: list[Token], tolerance: float) -> str | None:
    """The first difference larger than `tolerance` nats; None if there is none.

    Where two nearly tied tokens have changed places, the tokens after them cannot be compared.
    """
    for index, (old, new) in enumerate(zip(expected, actual, strict=False)):
        if old.text != new.text:
            if old.logprob - old.runner_up <= tolerance:
                return None
            return f"token {index} is {new.text!r} and should be {old.text!r}"
        if abs(old.logprob - new.logprob) > tolerance:
            return (
                f"token {index} has log-probability {new.logprob:.2f} and should have "
                f"{old.logprob:.2f}"
            )
    if len(expected) != len(actual):
        return f"the answer has {len(actual)} tokens and should have {len(expected)}"
    return None


class TextProbe:
    """A greedy answer of a few tokens, with their log-probabilities."""

    path = "/v1/chat/completions"

    def __init__(self, spec: ModelSpec) -> None:
        self._name, self._golden = spec.name, spec.golden

    def body(self) -> dict[str, Any]:
        return {
            "model": self._name,
            "messages": [_message(self._golden)],
            "temperature": 0,
            "max_tokens": self._golden.max_tokens,
            "logprobs": True,
            "top_logprobs": _NUM_ALTERNATIVES,
            # without a known answer, an answer that ends early would leave little to compare
            "ignore_eos": self._golden.must_contain is None,
        }

    def read(self, answer: Any) -> Record:
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        tokens = [asdict(_token(entry)) for entry in choice["logprobs"]["content"]]
        expected = self._golden.must_contain
        if expected and expected not in text:
            raise ValueError(f"its answer {text[:80]!r} does not contain {expected!r}")
        return {"tokens": tokens}

    def difference(self, recorded: Record, actual: Record) -> str | None:
        old, new = ([Token(**token) for token in record["tokens"]] for record in (recorded, actual))
        return compare(old, new, self._golden.logprob_tolerance)


class EmbeddingProbe:
    """The embedding of the same question."""

    path = "/v1/embeddings"

    def __init__(self, spec: ModelSpec) -> None:
        self._name, self._golden = spec.name, spec.golden

    def body(self) -> dict[str, Any]:
        # Only vLLM's chat form takes an image.
        return {"model": self._name, "messages": [_message(self._golden)]}

    def read(self, answer: Any) -> Record:
        embedding = [float(number) for number in answer["data"][0]["embedding"]]
        if not any(embedding) or not all(math.isfinite(number) for number in embedding):
            raise ValueError("its embedding has no direction")
        return {"embedding": embedding}

    def difference(self, recorded: Record, actual: Record) -> str | None:
        old, new = recorded["embedding"], actual["embedding"]
        if len(old) != len(new):
            return f"its embedding has {len(new)} numbers and should have {len(old)}"
        distance = cosine_distance(old, new)
        if distance <= self._golden.embedding_tolerance:
            return None
        return f"its embedding is {distance:.3f} (cosine) away from the recorded one"


def cosine_distance(a: list[float], b: list[float]) -> float:
    """0 for the same direction, 2 for the opposite; of equally long vectors."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / (math.hypot(*a) * math.hypot(*b))


def red_disc(size: int = 112) -> bytes:
    """A PNG of `size` x `size` pixels: a red disc on white."""
    radius = size * 0.35
    rows = bytearray()
    for y in range(size):
        rows.append(0)  # this row is not filtered
        for x in range(size):
            is_inside = (x - size / 2) ** 2 + (y - size / 2) ** 2 < radius**2
            rows += b"\xff\x00\x00" if is_inside else b"\xff\xff\xff"
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _message(golden: Golden) -> dict[str, Any]:
    if not golden.image:
        return {"role": "user", "content": golden.prompt}
    url = "data:image/png;base64," + base64.b64encode(red_disc()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": golden.prompt},
    ]
    return {"role": "user", "content": content}


def _token(entry: dict[str, Any]) -> Token:
    others = [o["logprob"] for o in entry["top_logprobs"] if o["token"] != entry["token"]]
    return Token(entry["token"], entry["logprob"], max(others, default=-1e9))
