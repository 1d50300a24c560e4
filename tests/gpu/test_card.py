"""The three models on the card: right answers, switches, speed, memory. Fills a report."""

import json
import math
import time
from itertools import pairwise, permutations
from typing import Any

import httpx
import pytest

from deployments.memory.nvml import GpuReader, GpuReading
from deployments.model_server.golden_probe import probe_for
from deployments.settings import ModelSpec, Settings
from tests.cluster.server import Server, wait_until
from tests.gpu.report import (
    MAX_KEPT_BYTES,
    WANTED_TOKENS_PER_S,
    Memory,
    Planned,
    Report,
    Speed,
    Switch,
)

SWITCH_TIMEOUT_S = 1200.0
NUM_TOKENS = 256
PROMPT = [{"role": "user", "content": "Write a long story about a lighthouse keeper."}]
NUM_SWITCHES = 10  # of each mode, at the least

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(7200)]


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    with httpx.Client(base_url=server.url, timeout=SWITCH_TIMEOUT_S) as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def switch(server: Server, report: Report, model: str, mode: str) -> Switch:
    """Make `model` resident, and note what it took."""
    ticket = post(server, "/admin/switch", {"model": model, "wait": True})
    assert ticket["state"] == "done", ticket
    phases = {phase["phase"]: phase["seconds"] for phase in ticket["phases"]}
    engine = ticket["engine"] or {}
    done = Switch(
        ticket["from"] or "nothing",
        model,
        mode,
        ticket["seconds"],
        phases,
        engine.get("start", ""),
        engine.get("steps", {}),
    )
    if done.source != done.target:  # else it was resident already
        report.switches.append(done)
    return done


def unload(server: Server) -> None:
    assert post(server, "/admin/unload", {"wait": True})["state"] == "done"


def golden_answer(server: Server, spec: ModelSpec) -> Any:
    """The answer to the model's known question, which is right as far as it is known."""
    probe = probe_for(spec)
    answer = post(server, probe.path, probe.body())
    probe.read(answer)
    return answer


def gained_bytes(before: GpuReading, after: GpuReading) -> int:
    """What the programs that are left hold more than before."""
    held = {p.pid: p.used_bytes or 0 for p in before.processes}
    gains = [(p.used_bytes or 0) - held.get(p.pid, 0) for p in after.processes]
    return max(0, sum(gains))


def planned(server: Server, spec: ModelSpec, held_bytes: int | None) -> Planned:
    """The plan of the engine that is resident, as a dry run of a switch to it tells."""
    plan = post(server, "/admin/switch", {"model": spec.name, "dry_run": True})["memory"]
    (model,) = (m for m in server.get("/models")["data"] if m["id"] == spec.name)
    return Planned(
        spec.name,
        model["max_model_len"],
        plan["weights_bytes"],
        plan["overhead_bytes"],
        plan["kv_cache_bytes"],
        held_bytes,
    )


def test_each_model_answers_its_known_question_and_gives_its_memory_back(
    server: Server, settings: Settings, card: GpuReader, report: Report
) -> None:
    """From nothing and back to nothing: what the card held before, it holds after."""
    for name, spec in settings.models.items():
        before = card.read()
        switch(server, report, name, "first")
        answer = golden_answer(server, spec)
        report.answers[name] = answer["choices"][0]["message"]["content"]
        resident = card.read()
        held_bytes = None
        if before.used_bytes is not None and resident.used_bytes is not None:
            held_bytes = resident.used_bytes - before.used_bytes
        report.planned.append(planned(server, spec, held_bytes))
        unload(server)
        after = card.read()
        report.memory.append(
            Memory(
                name,
                before.used_bytes,
                resident.used_bytes,
                after.used_bytes,
                gained_bytes(before, after),
            )
        )
    for memory in report.memory:
        assert (memory.kept_bytes or 0) <= MAX_KEPT_BYTES, memory


def test_every_switch_there_is_is_done_and_timed(
    server: Server, settings: Settings, report: Report
) -> None:
    """Each model to each other, around and around, and each answers as it did at first."""
    models = list(settings.models)
    first: dict[str, Any] = {}
    around = _round_trip(models)
    switch(server, report, around[0], "first")
    num_rounds = math.ceil(NUM_SWITCHES / (len(around) - 1))
    for _, target in [*pairwise(around)] * num_rounds:
        switch(server, report, target, "cold")
        probe = probe_for(settings.models[target])
        record = probe.read(post(server, probe.path, probe.body()))
        assert probe.difference(first.setdefault(target, record), record) is None
    cold = [s for s in report.switches if s.mode == "cold"]
    assert {(s.source, s.target) for s in cold} == set(permutations(models, 2))


def _round_trip(models: list[str]) -> list[str]:
    """A walk that goes from each model to each other once and ends where it began."""
    left, walk = set(permutations(models, 2)), [models[0]]

    def go_on() -> bool:
        if not left:
            return True
        for step in sorted(s for s in left if s[0] == walk[-1]):
            left.remove(step)
            walk.append(step[1])
            if go_on():
                return True
            left.add(step)
            walk.pop()
        return False

    assert go_on()
    return walk


def test_each_model_is_as_fast_as_is_wanted(
    server: Server, settings: Settings, report: Report, is_rehearsal: bool
) -> None:
    """One stream alone; the first one warms up and is not counted."""
    for name in settings.models:
        switch(server, report, name, "cold")
        measure(server, name, num_tokens=8)
        report.speeds.append(measure(server, name, 64 if is_rehearsal else NUM_TOKENS))
    slow = [s for s in report.speeds if s.tokens_per_s < WANTED_TOKENS_PER_S[0]]
    assert is_rehearsal or not slow, slow


def measure(server: Server, model: str, num_tokens: int) -> Speed:
    """The speed of one stream of that many tokens."""
    body = {
        "model": model,
        "messages": PROMPT,
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, times, num_told = time.monotonic(), [], 0
    with (
        httpx.Client(base_url=server.url, timeout=300) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
            num_told = (chunk.get("usage") or {}).get("completion_tokens", num_told)
    assert num_told == num_tokens
    seconds = times[-1] - times[0]
    return Speed(model, times[0] - began, num_tokens, (num_tokens - 1) / seconds)


def test_health_shows_the_card(server: Server, card: GpuReader) -> None:
    """The watch reads the same card as this test."""
    reading = card.read()

    def shown() -> bool:
        return bool(server.get("/health")["gpu"]["name"] == reading.name)

    wait_until(shown, 30, "the card in /health")


def test_warm_switches_wake_what_sleeps(
    warm_server: Server, settings: Settings, report: Report
) -> None:
    """Each model once from nothing, then around again: those are the figures."""
    models = list(settings.models)[:2]
    for name in models:
        switch(warm_server, report, name, "first")
    for name in models * (NUM_SWITCHES // len(models)):
        done = switch(warm_server, report, name, "warm")
        golden_answer(warm_server, settings.models[name])
    firsts = [s.seconds for s in report.switches if s.mode == "first"]
    assert done.seconds < max(firsts)
