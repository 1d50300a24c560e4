"""Steady load with a ledger: every request ends in exactly one entry."""

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.cluster.server import CAPITAL

CLIENT_TIMEOUT_S = 300.0
REFUSALS = (429, 502, 503, 504)  # 502: the proxy's word for a gateway that died
RESET_S = 2.0  # after the death of a proxy or a gateway its connections are broken by then
# After it nobody listens for so long: a dead proxy is missed after 3 s, and starts in as many.
AWAY_S = 20.0

RESET = "reset by a killed proxy or gateway"
NOT_TAKEN = "not taken while the proxy was away"


@dataclass
class Ledger:
    """Counts of how requests ended. `lost` is what must never be: hung, reset, empty, cut."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # what the refused and the cut were told
    epochs: list[tuple[str, int]] = field(default_factory=list)  # (model, epoch) of each answer
    front_kills: list[float] = field(default_factory=list)  # when a proxy or a gateway was killed
    controller_kills: list[float] = field(default_factory=list)  # it replaces a dead proxy

    def __str__(self) -> str:
        names = ["complete", "error event", "refused", "cancelled"]
        names += [name for name in (RESET, NOT_TAKEN) if self.counts[name]]
        entries = [f"{name}: {self.counts[name]}" for name in names]
        return ", ".join([*entries, f"lost: {len(self.lost)}"])

    def note_broken(self, exc: httpx.HTTPError) -> None:
        """A connection that was broken, or could not be made.

        Who relays a request's bytes cannot tell its client of its own death. So (1) what breaks
        right after it, and (2) what nobody took before its successor listened, are not lost.
        """
        now = time.monotonic()
        since_s = now - max(self.front_kills, default=-math.inf)
        away_s = now - max(self.front_kills + self.controller_kills, default=-math.inf)
        if isinstance(exc, httpx.ConnectError) and self.front_kills and away_s < AWAY_S:  # (2)
            self.counts[NOT_TAKEN] += 1
        elif isinstance(exc, httpx.NetworkError | httpx.ProtocolError) and since_s < RESET_S:  # (1)
            self.counts[RESET] += 1
        else:
            self.lost.append(f"{exc!r}, {since_s:.1f} s after the last kill in its way")


def ask_whole(http: httpx.Client, model: str, ledger: Ledger, tokens: int) -> None:
    body = {"model": model, "messages": CAPITAL, "temperature": 0, "max_tokens": tokens}
    answer = http.post("/v1/chat/completions", json=body, headers={"X-Cache": "off"})
    if answer.status_code == 200:
        value = answer.json()
        if answer.headers["x-model"] != model or value["model"] != model:
            ledger.lost.append(f"{model} was answered by {value['model']}")
        elif value["choices"][0]["finish_reason"] not in ("stop", "length"):
            ledger.lost.append(f"200 with {value['choices'][0]['finish_reason']}")
        else:
            ledger.counts["complete"] += 1
            ledger.epochs.append((model, int(answer.headers["x-epoch"])))
    else:
        note_refusal(answer, ledger)


def note_refusal(answer: httpx.Response, ledger: Ledger) -> None:
    is_json = answer.headers.get("content-type") == "application/json"
    if answer.status_code in REFUSALS and is_json and "message" in answer.json()["error"]:
        ledger.counts["refused"] += 1
        ledger.errors.append(answer.text)
    else:
        ledger.lost.append(f"{answer.status_code} {answer.text[:200]}")


def ask_stream(
    http: httpx.Client,
    model: str,
    ledger: Ledger,
    tokens: int,
    *,
    has_begun: threading.Event | None = None,
    **fields: Any,
) -> None:
    """`has_begun` is set with the first event of the answer."""
    body = {"model": model, "messages": CAPITAL, "max_tokens": tokens, "stream": True} | fields
    data = []
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            note_refusal(answer, ledger)
            return
        for line in answer.iter_lines():
            if line.startswith("data: "):
                data.append(line[6:])
                if has_begun:
                    has_begun.set()
    if not data:
        ledger.lost.append("an empty stream")
    elif any('"error"' in event for event in data[:-1]):
        ledger.lost.append("a stream that went on after an error event")
    elif '"error"' in data[-1]:
        ledger.counts["error event"] += 1
        ledger.errors.append(data[-1])
    elif data[-1] == "[DONE]" and json.loads(data[-2])["choices"][0]["finish_reason"]:
        ledger.counts["complete"] += 1
    else:
        ledger.lost.append(f"a stream that ends with {data[-1][:100]}")


def ask_once(url: str, ask: Callable[..., None], *args: Any, **options: Any) -> None:
    """One request on a connection of its own, for a thread; `args` are model, ledger, tokens."""
    ledger: Ledger = args[1]
    with httpx.Client(base_url=url, timeout=CLIENT_TIMEOUT_S) as http:
        try:
            ask(http, *args, **options)
        except httpx.HTTPError as exc:
            ledger.note_broken(exc)


@contextmanager
def steady_load(url: str, models: list[str], *, num_clients: int, seed: int):
    """Clients that ask one after the other, each for a model at random, until the block ends."""
    ledger = Ledger()
    stop = threading.Event()

    def client(number: int) -> None:
        choose = random.Random(seed * 100 + number)
        with httpx.Client(base_url=url, timeout=CLIENT_TIMEOUT_S) as http:
            while not stop.is_set():
                ask = choose.choice([ask_whole, ask_stream])
                try:
                    ask(http, choose.choice(models), ledger, choose.choice([4, 16, 64]))
                except httpx.HTTPError as exc:
                    ledger.note_broken(exc)
                    time.sleep(0.2)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(num_clients)]
    for thread in clients:
        thread.start()
    try:
        yield ledger
    finally:
        stop.set()
        for thread in clients:
            thread.join(CLIENT_TIMEOUT_S)
            if thread.is_alive():
                ledger.lost.append("a request that never ended")
        print(f"\nledger (seed {seed}): {ledger}")
