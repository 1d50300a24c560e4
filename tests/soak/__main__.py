"""`make soak`: what is lost and what grows, when a server is used and abused for long."""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from deployments.host.logs import log_path
from deployments.settings import PROJECT
from tests.cluster import victims
from tests.cluster.ledger import Ledger
from tests.cluster.server import Server, running, wait_until
from tests.soak import census, rude
from tests.soak.clients import Client, World, ask
from tests.soak.report import SETTLE_S, Verdict, judge_growth, judge_ledger, merged
from tests.soak.troubles import Troubles

NUM_CLIENTS = 4
SAMPLE_S = 10.0
WARM_UP_S = 180.0  # six switches; a quarter of a short run
REST_S = 5.0
RETRY_S = 2.0
BUSY_AT_REST = 0.2  # of a core; a proxy that spins takes half of one and more
ENGINE_ENDS = ("engine_ended", "engine_mute", "engine_stuck", "replica_lost")
AFTER_KILL_S = 90.0  # so long an end may come of a kill: two loads on a busy machine
ARTIFACTS = PROJECT / "tests" / "artifacts" / "soak"


def run(minutes: float, seed: int) -> int:
    print(f"soak: {minutes:g} minutes, seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="llmb-", dir="/tmp"))
    # A folder of its own for what would lie in /tmp, so that nobody else's files are counted. The
    # longest path of HAProxy's sockets under it has 84 bytes more, and 97 are allowed.
    temp = Path(f"/tmp/s{os.getpid()}")
    temp.mkdir(mode=0o700)
    try:
        with running(folder, ray_environment={"TMPDIR": str(temp)}) as server:
            verdict, samples = _soak(server, temp, minutes, seed)
    finally:
        for path in (folder, temp):
            shutil.rmtree(path, ignore_errors=True)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    about = {
        "minutes": minutes,
        "seed": seed,
        "report": verdict.lines,
        "failures": verdict.failures,
    }
    path.write_text(json.dumps(about | {"samples": [s.as_json() for s in samples]}))
    print("\n".join(verdict.lines))
    print(f"samples: {path.relative_to(PROJECT)}")
    for failure in verdict.failures:
        print(f"FAILED: {failure}")
    if not verdict.failures:
        print("Nothing was lost, and nothing grew.")
    return bool(verdict.failures)


def _soak(
    server: Server, temp: Path, minutes: float, seed: int
) -> tuple[Verdict, list[census.Sample]]:
    world = World(server.url)
    ledgers = [Ledger()]
    for _ in range(NUM_CLIENTS):
        kills = {
            "front_kills": ledgers[0].front_kills,
            "controller_kills": ledgers[0].controller_kills,
        }
        ledgers.append(Ledger(**kills))
    troubles = Troubles(server, world, ledgers[0], random.Random(f"{seed} troubles"))
    clients = [
        Client(world, random.Random(f"{seed} {number}"), ledger)
        for number, ledger in enumerate(ledgers[1:])
    ]
    rows = rude.usable_rows(server.url)
    sent = [0] * NUM_CLIENTS

    def use(number: int) -> None:
        while not world.stop.is_set():
            sent[number] += 1
            num_refused = ledgers[number + 1].counts["refused"]
            _one_request(clients[number], rows)
            if ledgers[number + 1].counts["refused"] > num_refused:
                world.stop.wait(RETRY_S)  # as programs do

    threads = [threading.Thread(target=_guarded, args=(world, use, n)) for n in range(NUM_CLIENTS)]
    threads.append(threading.Thread(target=_guarded, args=(world, troubles.run)))
    began, began_wall = time.monotonic(), time.time()
    for thread in threads:
        thread.start()
    samples: list[census.Sample] = []
    folders = {
        "home": server.home,
        "home's logs": server.home / "logs",
        "Ray's folder": server.ray_tmp,
        "temporary folder": temp,
    }
    names_before = {name: census.kinds(path) for name, path in folders.items()}
    try:
        while (left_s := began + minutes * 60 - time.monotonic()) > 0 and not world.unexpected:
            samples.append(census.take(server, folders, began, world.resident))
            world.stop.wait(min(SAMPLE_S, left_s))
    finally:
        world.stop.set()
        for thread in threads:
            thread.join(400)
        for client in clients:
            client.close()
    verdict = Verdict()
    verdict.failures += world.unexpected
    verdict.failures += ["a request never ended" for t in threads if t.is_alive()]
    _head(verdict, troubles, minutes, seed, began_wall)
    num_switches = troubles.switches.total()
    judge_ledger(verdict, merged(ledgers), sum(sent) + num_switches)
    _judge_switches(verdict, troubles)
    _judge_engines(verdict, server, samples, troubles)
    _judge_rest(verdict, server)
    warm_s = min(WARM_UP_S, minutes * 60 / 4)
    warm = [sample for sample in samples if sample.at_s >= warm_s]
    judge_growth(verdict, warm, settle_s=min(SETTLE_S, minutes * 60 / 20))
    for name in ("Ray's folder", "temporary folder", "home"):
        grown = census.kinds(folders[name]) - names_before[name]
        told = ", ".join(f"{kind} {num}" for kind, num in grown.most_common(4))
        verdict.lines.append(f"new in {name}: {told}")
    return verdict, samples


def _one_request(client: Client, rows: list[Any]) -> None:
    polite: dict[Callable[[], None], int] = {
        client.chat: 6,
        client.stream: 6,
        client.responses: 3,
        client.message: 3,
        client.message_stream: 3,
        client.tool: 2,
        client.count: 2,
    }
    if client.world.resident == "qwen-vl":
        polite[client.picture] = 6
    if client.choose.random() < 0.01:
        return ask(client.ledger, client.choose.choice([client.embed, client.picture]))
    bare: dict[Callable[[], None], int] = {
        lambda: rude.split_chat(client): 4,
        lambda: rude.leave(client): 6,
        lambda: rude.bad_row(client, rows): 2,
        lambda: rude.spoilt(client): 4,
    }
    acts = polite | bare
    (act,) = client.choose.choices([*acts], [*acts.values()])
    return ask(client.ledger, act) if act in polite else rude.speak(client.ledger, act)


def _guarded(world: World, act: Callable[..., None], *args: Any) -> None:
    """A fault of the soak itself ends it, instead of a thread that is silently missing."""
    try:
        act(*args)
    except Exception as exc:
        world.unexpected.append(f"the soak itself failed: {exc!r}")
        world.stop.set()
        raise


def _head(verdict: Verdict, troubles: Troubles, minutes: float, seed: int, began: float) -> None:
    cores, kills = len(os.sched_getaffinity(0)), Counter(part for _, part in troubles.kills)
    at = datetime.fromtimestamp(began, UTC)
    verdict.lines += [
        f"soak of {minutes:g} minutes on {cores} cores, seed {seed}, {at:%Y-%m-%d %H:%M} UTC",
        f"switches {troubles.switches.total()}: "
        + ", ".join(f"{state} {num}" for state, num in troubles.switches.most_common()),
        f"kills {kills.total()}: "
        + ", ".join(f"{part} {num}" for part, num in kills.most_common())
        + f"; all cores taken {troubles.num_taken} times",
    ]


def _judge_switches(verdict: Verdict, troubles: Troubles) -> None:
    """One may fail where something was killed under it."""
    num_failed = len(troubles.tickets)
    if num_failed > len(troubles.kills):
        verdict.failures.append(
            f"{num_failed} switches failed, {len(troubles.kills)} parts were killed: "
            f"{json.dumps(troubles.tickets)[:600]}"
        )


def _judge_engines(
    verdict: Verdict, server: Server, samples: list[census.Sample], troubles: Troubles
) -> None:
    """Never two; none ends that was not killed: on a busy machine an engine is slow, not dead."""
    most = max(sample.num_engines for sample in samples)
    if most > 1:
        verdict.failures.append(f"{most} engines at once")
    log = log_path(server.home, "switchboard")
    kills = [at for at, _ in troubles.kills]
    ends = 0
    for path in (log.with_name(log.name + ".1"), log):
        for line in path.read_text().splitlines() if path.exists() else []:
            told = json.loads(line)
            if told.get("code") in ENGINE_ENDS:
                ends += 1
                at = datetime.fromisoformat(told["time"]).timestamp()
                if not any(0 <= at - kill < AFTER_KILL_S for kill in kills):
                    verdict.failures.append(f"an engine ended by itself: {line[:400]}")
    verdict.lines.append(f"engines at most {most} at once; {ends} ended under their requests")


def _judge_rest(verdict: Verdict, server: Server) -> None:
    """When all clients have gone nothing is in flight, no proxy spins, and answers are right."""

    def at_rest() -> bool:
        try:
            health = server.get("/health")
        except (httpx.HTTPError, ValueError):
            return False
        is_idle = health["in_flight"] == health["queued"] == 0
        return bool(health["state"] == "serving" and is_idle)

    try:
        began = time.monotonic()
        wait_until(at_rest, 120, "a model serves and nothing is in flight")
        rested_s = time.monotonic() - began
        proxy = victims.find(server, "proxy")
        assert proxy, "there is no proxy"
        before = _cpu_s(proxy)
        threading.Event().wait(REST_S)
        busy = (_cpu_s(proxy) - before) / REST_S
        assert busy < BUSY_AT_REST, f"the proxy takes {busy:.2f} of a core at rest"
        resident = server.get("/health")["resident"]
        answer = server.chat("qwen-14b")
        assert "Paris" in answer.text, answer.text
    except AssertionError as exc:
        verdict.failures.append(f"at rest: {exc}")
        return
    verdict.lines.append(
        f"at rest after {rested_s:.1f} s: {resident} serves, 0 in flight, "
        f"the proxy takes {busy:.2f} of a core"
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it leaves no server behind
    raise SystemExit(run(options.minutes, options.seed))
