"""Load: streams of our own, and vLLM's `bench serve`, so that nobody must trust ours."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from deployments.engine.environment import base_environment
from tests.bench.cpu import CpuMeter, Roots
from tests.bench.samples import Samples

# Each prompt is a new one: neither a cache of answers nor the engine's prefix cache may help.
_NUMBERS = itertools.count(1000)
_HEADERS = {"X-Cache": "off"}  # bare vLLM does not know it
_TIMEOUT = aiohttp.ClientTimeout(total=600)
_IDLE_S = 4.0
_BENCH_SERVE = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


@dataclass(frozen=True)
class Target:
    """A server under load. `tokenizer`: the folder of the model's checkpoint."""

    subject: str
    url: str
    model: str
    tokenizer: Path
    roots: Roots


@dataclass(frozen=True)
class Wave:
    """Streams that were begun together."""

    ttfts_s: list[float]
    num_tokens: int
    seconds: float


def measure(target: Target, samples: Samples, waves: dict[int, int], num_tokens: int) -> None:
    """`waves`: concurrency -> how many times so many streams of `num_tokens` tokens are made. Half
    as many go first, and are thrown away; CPU is counted while there are ten streams."""
    for concurrency, num_waves in waves.items():
        _run(target, concurrency, max(1, num_waves // 2), num_tokens)
        meter = CpuMeter(target.roots)
        found = _run(target, concurrency, num_waves, num_tokens)
        cpu_s, wall_s = meter.read()
        tokens = sum(wave.num_tokens for wave in found)
        at = f"@{concurrency}"
        samples.add(f"tokens_per_s{at}", target.subject, [w.num_tokens / w.seconds for w in found])
        samples.add(
            f"ttft_ms{at}", target.subject, [1000 * t for wave in found for t in wave.ttfts_s]
        )
        if concurrency == 10:
            idle = _idle_share(target)
            samples.add("idle_cpu_%", target.subject, [100 * idle])
            samples.add(f"cpu_ms_a_token{at}", target.subject, [1000 * cpu_s / tokens])
            busy_s = cpu_s - idle * wall_s
            samples.add(f"busy_cpu_ms_a_token{at}", target.subject, [1000 * busy_s / tokens])


def _run(target: Target, concurrency: int, num_waves: int, num_tokens: int) -> list[Wave]:
    async def run() -> list[Wave]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            return [await _wave(session, target, concurrency, num_tokens) for _ in range(num_waves)]

    return asyncio.run(run())


async def _wave(
    session: aiohttp.ClientSession, target: Target, concurrency: int, num_tokens: int
) -> Wave:
    began = time.perf_counter()
    streams = (_stream(session, target, num_tokens) for _ in range(concurrency))
    ends = await asyncio.gather(*streams)
    seconds = time.perf_counter() - began
    return Wave([ttft for ttft, _ in ends], sum(tokens for _, tokens in ends), seconds)


async def _stream(
    session: aiohttp.ClientSession, target: Target, num_tokens: int
) -> tuple[float, int]:
    """Seconds to the first token, and the tokens that the server counted."""
    began = time.perf_counter()
    first = None
    usage: dict[str, Any] = {}
    async with session.post(
        f"{target.url}/v1/chat/completions",
        json=body(target.model, num_tokens) | {"stream_options": {"include_usage": True}},
        headers=_HEADERS,
    ) as response:
        response.raise_for_status()
        async for line in response.content:
            if first is None and has_token(line):
                first = time.perf_counter()
            if line.startswith(b'data: {"') and b'"usage":{' in line.replace(b" ", b""):
                usage = json.loads(line[6:])["usage"]
    assert first is not None, "a stream without a token"
    assert usage["completion_tokens"] == num_tokens, usage
    return first - began, num_tokens


def body(model: str, num_tokens: int) -> dict[str, Any]:
    """A new question, whose answer has exactly `num_tokens` tokens."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell a story of number {next(_NUMBERS)}."}],
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
    }


def has_token(line: bytes) -> bool:
    """Whether an event of a chat's stream brings text: the first one only names the role."""
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line[6:])["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


def _idle_share(target: Target) -> float:
    """CPU seconds a second while nobody asks for anything."""
    meter = CpuMeter(target.roots)
    time.sleep(_IDLE_S)
    cpu_s, wall_s = meter.read()
    return cpu_s / wall_s


def measure_with_bench_serve(
    target: Target, samples: Samples, folder: Path, num_prompts: int, num_tokens: int
) -> None:
    """vLLM's own client at ten streams; its JSON stays in `folder`."""
    name = f"bench-serve-{target.subject.replace(' ', '-')}-{next(_NUMBERS)}.json"
    words = {
        "backend": "openai-chat",
        "base-url": target.url,
        "endpoint": "/v1/chat/completions",
        "model": target.model,
        "tokenizer": target.tokenizer,
        "dataset-name": "random",
        "random-input-len": 32,
        "random-output-len": num_tokens,
        "num-prompts": num_prompts,
        "num-warmups": 10,
        "max-concurrency": 10,
        "header": "X-Cache=off",
        "temperature": 0,
        "seed": next(_NUMBERS),
        "result-dir": folder,
        "result-filename": name,
    }
    options = [f"--{key}={value}" for key, value in words.items()]
    switches = ["--ignore-eos", "--save-result", "--disable-tqdm"]
    done = subprocess.run(
        [sys.executable, "-c", _BENCH_SERVE, *options, *switches],
        env=base_environment() | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    result = folder / name
    assert result.exists(), done.stdout[-3000:]
    found = json.loads(result.read_text())
    assert found["completed"] == num_prompts, found
    at = "@10"
    samples.add(f"bench_serve_tokens_per_s{at}", target.subject, [found["output_throughput"]])
    samples.add(f"bench_serve_ttft_ms{at}", target.subject, [found["median_ttft_ms"]])
