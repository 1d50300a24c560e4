"""This server: what it is compared by."""

import time
from collections.abc import Iterable

import httpx
import psutil

from tests.bench.first_token import wait_first_token
from tests.bench.samples import Samples
from tests.bench.streams import body
from tests.bench.targets import GENERATION, OURS
from tests.cluster.server import Server, wait_until

_SWITCH_TIMEOUT_S = 900.0
# A model serves for some seconds at least: what the next load needs is made ready in that time.
_RESIDENT_S = 6.0
_PHASES = ("queued", "preparing", "draining", "unloading", "loading", "verifying")


def roots(server: Server) -> Iterable[psutil.Process]:
    """The tree of `serve run`, Ray's processes, engines and their supervisors."""
    return [psutil.Process(server.process.pid), *server.family()]


def _switch(server: Server, model: str) -> tuple[float, dict[str, float]]:
    """Seconds from asking for the switch to the first token, and the ticket's phases in seconds."""
    wait_until(lambda: server.get("/health")["in_flight"] == 0, 30, "nothing is in flight")
    began = time.monotonic()
    answer = httpx.post(f"{server.url}/admin/switch", json={"model": model}, timeout=30)
    assert answer.status_code == 202, answer.text
    first = wait_first_token(server.url, model) - began
    path = f"/admin/switch/{answer.json()['id']}"
    ticket = wait_until(
        lambda: (t := server.get(path))["state"] not in ("queued", "running") and t, 30, "it ends"
    )
    assert ticket["state"] == "done", ticket
    return first, {p["phase"]: p["seconds"] for p in ticket["phases"]}


def measure_switches(
    server: Server, models: list[str], num_switches: int, samples: Samples
) -> None:
    """Cold ones, to and fro, with a request that waits for the new model from the beginning.

    No model serves from the drain, which is over at once, to the first token.
    """
    total_s, without_s = [], []
    phases: dict[str, list[float]] = {phase: [] for phase in (*_PHASES, "first token")}
    for number in range(num_switches + 1):
        time.sleep(_RESIDENT_S)
        first_s, found = _switch(server, models[(number + 1) % len(models)])
        if number == 0:  # the standby may still be at its own imports
            continue
        total_s.append(first_s)
        without_s.append(first_s - found["queued"] - found["preparing"])
        for phase in _PHASES:
            phases[phase].append(found.get(phase, 0.0))
        phases["first token"].append(max(0.0, first_s - sum(found.values())))
    samples.add("cold_switch_s", OURS, total_s)
    samples.add("no_service_s", OURS, without_s)
    for phase, values in phases.items():
        samples.add(f"phase_s@{phase}", f"{OURS}, cold", values)


def measure_warm_switches(
    server: Server, models: list[str], num_switches: int, samples: Samples
) -> None:
    """To and fro between engines that sleep in turn; verification is told apart."""
    for model in [*models[1:], models[0]]:  # each has to be loaded once
        _switch(server, model)
    for _ in models:
        models = [*models[1:], models[0]]
        _switch(server, models[0])
    found: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    first_s = []
    for _ in range(num_switches):
        models = [*models[1:], models[0]]
        seconds, phases = _switch(server, models[0])
        first_s.append(seconds)
        for phase in _PHASES:
            found[phase].append(phases.get(phase, 0.0))
    others = zip(*(found[phase] for phase in _PHASES if phase != "verifying"), strict=True)
    samples.add("warm_ms", OURS, [1000 * sum(each) for each in others])
    samples.add("warm_switch_to_first_token_s", OURS, first_s)
    for phase, values in found.items():
        samples.add(f"phase_s@{phase}", f"{OURS}, warm", values)


def measure_cache(
    server: Server, model: str, num_hits: int, num_generations: int, samples: Samples
) -> None:
    """The same answer made and given again, in full, over one connection that stays open."""
    question = body(model, 32) | {"stream": False}

    def ask(http: httpx.Client, cache: str, expected: str | None) -> float:
        began = time.perf_counter()
        headers = {"X-Cache": cache}
        answer = http.post("/v1/chat/completions", json=question, headers=headers)
        assert answer.status_code == 200, answer.text
        assert expected is None or answer.headers["X-Cache"] == expected, answer.headers
        return 1000 * (time.perf_counter() - began)

    with server.http as http:
        ask(http, "on", "miss")
        made = [ask(http, "off", None) for _ in range(num_generations)]
        hits = [ask(http, "on", "hit") for _ in range(num_hits + 5)][5:]
    samples.add("answer_ms", OURS, hits)
    samples.add("answer_ms", GENERATION, made)
