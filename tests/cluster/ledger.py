"""Steady load with a ledger: every request ends in exactly one entry."""

import json
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.cluster.server import CAPITAL

CLIENT_TIMEOUT_S = 300.0


@dataclass
class Ledger:
    """Counts of how requests ended. `lost` is what must never be: hung, reset, empty, cut."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # what the refused and the cut were told
    epochs: list[tuple[str, int]] = field(default_factory=list)  # (model, epoch) of each answer

    def __str__(self) -> str:
        names = ("complete", "error event", "refused", "cancelled")
        entries = [f"{name}: {self.counts[name]}" for name in names]
        return ", ".join([*entries, f"lost: {len(self.lost)}"])


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
    elif answer.status_code in (429, 503, 504) and "message" in answer.json()["error"]:
        ledger.counts["refused"] += 1
        ledger.errors.append(answer.text)
    else:
        ledger.lost.append(f"{answer.status_code} {answer.text[:200]}")


def ask_stream(http: httpx.Client, model: str, ledger: Ledger, tokens: int) -> None:
    body = {"model": model, "messages": CAPITAL, "max_tokens": tokens, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            ledger.counts["refused"] += 1
            return
        data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    if not data:
        ledger.lost.append("an empty stream")
    elif '"error"' in data[-1]:
        ledger.counts["error event"] += 1
        ledger.errors.append(data[-1])
    elif data[-1] == "[DONE]" and json.loads(data[-2])["choices"][0]["finish_reason"]:
        ledger.counts["complete"] += 1
    else:
        ledger.lost.append(f"a stream that ends with {data[-1][:100]}")


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
                    ledger.lost.append(repr(exc))
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
