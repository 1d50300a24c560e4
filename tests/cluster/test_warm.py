"""Switching with engines kept asleep: the same promises, and at most one engine awake."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.ledger import steady_load
from tests.cluster.server import Server, running, wait_until

pytestmark = [pytest.mark.timeout(900), pytest.mark.own_server]
MODELS = ["qwen-14b", "qwen-coder", "qwen-vl"]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("warm"), residency="warm") as server:
        yield server


def statuses(server: Server) -> dict[str, str]:
    return {model["id"]: model["status"] for model in server.get("/models")["data"]}


def engine_of(server: Server, model: str) -> psutil.Process:
    """The API server of the model's one engine."""
    found = [ps[0] for socket, ps in server.watch().engines().items() if socket.startswith(model)]
    assert len(found) == 1, found
    return found[0]


def is_awake(socket: Path) -> bool:
    """What the engine says of itself; one that is silent or still starting is not."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=2) as client:
            return client.get("http://engine/is_sleeping").json() == {"is_sleeping": False}
    except (httpx.HTTPError, ValueError):
        return False


@contextmanager
def counting_awake(server: Server) -> Iterator[list[set[str]]]:
    """Gathers the sets of engines that were awake at one time, where there were several."""
    several: list[set[str]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            sockets = list((server.home / "run").glob("qwen-*.sock"))
            awake = [s for s in sockets if is_awake(s)]
            # one may have gone to sleep and another woken between two questions: ask again
            awake = [s for s in awake if is_awake(s)] if len(awake) > 1 else awake
            if len(awake) > 1:
                several.append({s.name for s in awake})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield several
    finally:
        over.set()
        thread.join()


def test_models_that_have_been_resident_are_woken_and_not_started(warm: Server) -> None:
    """Each answers rightly after its waking, from the process that it was loaded in."""
    for model in [*MODELS[1:], MODELS[0]]:
        ticket = warm.switch(model).json()
        assert ticket["state"] == "done", ticket
    engines = {model: engine_of(warm, model) for model in MODELS}
    assert statuses(warm) == {"qwen-14b": "resident", "qwen-coder": "asleep", "qwen-vl": "asleep"}
    for model in [*MODELS[1:], MODELS[0]]:
        ticket = warm.switch(model).json()
        assert ticket["state"] == "done", ticket
        print(model, "woken in", ticket["seconds"], "s:", ticket["phases"])
        answer = warm.chat(model)
        assert answer.status_code == 200
        assert answer.headers["x-model"] == model
        if model != "qwen-vl":
            assert "Paris" in answer.text
    assert {model: engine_of(warm, model) for model in MODELS} == engines


def test_no_request_is_lost_and_one_engine_is_awake(warm: Server) -> None:
    """Switches under load, each request answered by the model it named."""
    with (
        counting_awake(warm) as several,
        steady_load(warm.url, MODELS, num_clients=3, seed=11) as ledger,
    ):
        for n in range(9):
            ticket = warm.switch(MODELS[n % 3], drain_timeout_s=120).json()
            assert ticket["state"] == "done", ticket
    assert ledger.lost == []
    assert ledger.errors == []
    assert several == []


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_sleeper_that_can_not_be_woken_is_started_anew(warm: Server, fault: int) -> None:
    """One that died, and one that is stopped: the switch to it succeeds all the same."""
    warm.switch("qwen-coder")
    warm.switch("qwen-14b")
    sleeper = engine_of(warm, "qwen-coder")
    for process in [*sleeper.children(recursive=True), sleeper]:
        os.kill(process.pid, fault)
    ticket = warm.switch("qwen-coder").json()
    assert ticket["state"] == "done", ticket
    assert "Paris" in warm.chat("qwen-coder").text
    assert engine_of(warm, "qwen-coder") != sleeper
    wait_until(lambda: not sleeper.is_running(), 90, "nothing of the old engine is left")


def test_task_of_the_same_model_takes_its_sleepers_replica(warm: Server) -> None:
    """A replica holds one engine: going from chat to embeddings ends the first."""
    warm.switch("qwen-vl")
    ticket = warm.switch("qwen-vl", task="embed").json()
    assert ticket["state"] == "done", ticket
    assert engine_of(warm, "qwen-vl")
    assert warm.switch("qwen-vl").json()["state"] == "done"


def test_restarted_switchboard_finds_who_is_awake_and_who_sleeps(warm: Server) -> None:
    warm.switch("qwen-coder")
    warm.switch("qwen-14b")
    before, epoch = statuses(warm), warm.get("/health")["epoch"]
    engines = {model: engine_of(warm, model) for model in ("qwen-14b", "qwen-coder")}
    tree = psutil.Process(warm.process.pid).children(recursive=True)
    name = "ServeReplica:llm-backend:Switchboard"
    next(p for p in tree if name in " ".join(p.cmdline())).kill()
    warm.wait_serving("qwen-14b")
    wait_until(lambda: statuses(warm) == before, 120, "the sleepers are known again")
    assert warm.get("/health")["epoch"] == epoch
    assert warm.switch("qwen-coder").json()["state"] == "done"
    assert {model: engine_of(warm, model) for model in engines} == engines


def test_unload_ends_the_sleepers_too(warm: Server) -> None:
    warm.switch("qwen-coder")
    with warm.http as http:
        answer: dict[str, Any] = http.post("/admin/unload", json={"wait": True}).json()
    assert answer["state"] == "done", answer
    wait_until(lambda: not warm.watch().engines(), 90, "no engine is left")
    assert set(statuses(warm).values()) == {"absent"}
    assert warm.chat("qwen-14b").status_code == 200
