"""The verification probe: no model serves before it has answered."""

from pathlib import Path

import aiohttp

from deployments.engine import EngineFailed
from deployments.residency import GOLDEN_MISMATCH, Problem
from serve_app.settings import ModelSpec

_TIMEOUT_S = 60.0


async def verify(socket: Path, spec: ModelSpec) -> None:
    """Ask the engine at `socket` for one greedy token.

    Raises:
        EngineFailed: no answer, or none that is an answer.
    """
    body = {"model": spec.name, "prompt": "1 2 3", "max_tokens": 1, "temperature": 0}
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(socket)),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            ) as session,
            session.post("http://engine/v1/completions", json=body) as response,
        ):
            answer = await response.json()
            is_answer = response.status == 200 and answer["choices"][0]["finish_reason"] == "length"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as exc:
        raise EngineFailed(
            Problem(
                "engine_mute", f"the engine of {spec.name} did not answer: {type(exc).__name__}"
            )
        ) from exc
    if not is_answer:
        raise EngineFailed(Problem(GOLDEN_MISMATCH, f"the engine of {spec.name} gave no answer"))
