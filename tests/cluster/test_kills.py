"""Every part is killed in a switch's phases, then all of them at random: each request ends in an
answer or an error, there are never two engines, and a model serves again by itself."""

import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deployments.engine.forkserver import listens, socket_path
from deployments.settings import PROJECT
from tests.cluster import victims
from tests.cluster.ledger import (
    NOT_TAKEN,
    RESET,
    Ledger,
    ask_once,
    ask_stream,
    ask_whole,
    steady_load,
)
from tests.cluster.server import Server, running, wait_until
from tests.cluster.victims import ENGINE_PARTS, FRONT, PARTS

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_server, pytest.mark.drill]

MODELS = ("qwen-14b", "qwen-coder")
# Two loads. One takes 4 s from a standby, and 34 s where that died with the Switchboard.
TWO_LOADS_S = 80.0
LONG = 200  # tokens: 5 to 10 s, time enough to kill what is drained
KILLER_S = 40.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose known question takes two seconds, so that there is time to kill what verifies."""
    folder = tmp_path_factory.mktemp("kills")
    configs = shutil.copytree(PROJECT / "configs", folder / "configs")
    for model in MODELS:
        path = configs / "models" / f"{model}.yaml"
        value = yaml.safe_load(path.read_text())
        # without a known answer all the tokens are asked for
        value["profiles"]["cpu-demo"]["golden"] |= {
            "must_contain": None,
            "max_tokens": 64,
            "logprob_tolerance": 5,  # so many tokens drift, and how right they are is not tested
        }
        path.write_text(yaml.safe_dump(value))
    with running(folder, config_dir=str(configs)) as server:
        for model in MODELS:  # the first good start records the answer
            server.switch(model)
        yield server


def switch_under_way(server: Server) -> dict[str, Any] | None:
    """What runs, or None while nobody can be asked."""
    try:
        found: dict[str, Any] | None = server.get("/admin/status")["switch"]
        return found
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def wait_phase(server: Server, phase: str) -> None:
    wait_until(lambda: (switch := switch_under_way(server)) and switch["phase"] == phase, 60, phase)


def begin_switch(server: Server, model: str) -> str:
    """The ticket's id."""
    with server.http as http:
        begun: dict[str, str] = http.post("/admin/switch", json={"model": model}).json()
    return begun["id"]


def ended_ticket(server: Server, ticket_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        try:
            ticket: dict[str, Any] = server.get(f"/admin/switch/{ticket_id}")
        except (httpx.HTTPError, ValueError):
            return None
        return ticket if ticket.get("state") in ("done", "rolled_back", "failed") else None

    found: dict[str, Any] = wait_until(ended, TWO_LOADS_S, f"the ticket {ticket_id} ends")
    return found


def resting(server: Server) -> tuple[str, str]:
    """The model that serves while no switch is under way, and the other one."""

    def at_rest() -> str | None:
        health = server.get("/health")
        is_ready = listens(socket_path(server.home))
        return health["resident"] if health["state"] == "serving" and is_ready else None

    old = wait_until(at_rest, TWO_LOADS_S, "a model serves, and the standby is ready")
    return old, next(model for model in MODELS if model != old)


def kill(server: Server, ledger: Ledger, part: str) -> psutil.Process:
    if part in FRONT:
        ledger.front_kills.append(time.monotonic())
    elif part == "controller":
        ledger.controller_kills.append(time.monotonic())
    return victims.kill(server, part)


def begin_long_answer(
    server: Server, clients: ThreadPoolExecutor, model: str, ledger: Ledger
) -> None:
    """A stream that keeps the model busy for seconds; it has begun."""
    has_begun = threading.Event()
    request = (server.url, ask_stream, model, ledger, LONG)
    clients.submit(ask_once, *request, has_begun=has_begun, ignore_eos=True)
    assert has_begun.wait(30)


def check_ledger(ledger: Ledger, part: str) -> None:
    print(f"\n{part}: {ledger}; {ledger.errors}")
    assert ledger.lost == []
    assert ledger.counts[NOT_TAKEN] == 0  # all had been taken before
    if part not in FRONT:
        assert ledger.counts[RESET] == 0


def check_at_rest(server: Server, model: str) -> None:
    server.wait_serving(model, TWO_LOADS_S)
    assert "Paris" in server.chat(model).text


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_draining_ends_in_the_switch(server: Server, part: str) -> None:
    """A long answer holds the drain; whoever dies, the one who waits for the new model gets it."""
    old, new = resting(server)
    ledger = Ledger()
    with server.watch().watching() as watch, ThreadPoolExecutor() as clients:
        begin_long_answer(server, clients, old, ledger)
        ticket_id = begin_switch(server, new)
        clients.submit(ask_once, server.url, ask_whole, new, ledger, 4)
        wait_phase(server, "draining")
        victim = kill(server, ledger, part)
        ticket = ended_ticket(server, ticket_id)
        check_at_rest(server, new)
    check_ledger(ledger, part)
    assert not victim.is_running()
    assert watch.most_at_once == 1
    wait_until(lambda: not watch.orphans(), 20, f"no orphans: {watch.orphans()}")
    if part == "switchboard":
        assert (ticket["state"], ticket["error"]["code"]) == ("failed", "switchboard_restarted")
    else:
        assert ticket["state"] == "done", ticket
    if part in FRONT:
        assert ledger.counts[RESET] >= 1
    else:
        assert ledger.counts["complete"] == 1 + (part not in ENGINE_PARTS)
        assert ledger.counts["error event"] == (part in ENGINE_PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_verifying_ends_with_one_right_engine(server: Server, part: str) -> None:
    """The engine's death brings the old model back; any other death does not end the switch."""
    old, new = resting(server)
    ledger = Ledger()
    with server.watch().watching() as watch, ThreadPoolExecutor() as clients:
        ticket_id = begin_switch(server, new)
        for ask in (ask_whole, ask_stream):
            clients.submit(ask_once, server.url, ask, new, ledger, 4)
        wait_phase(server, "verifying")
        victim = kill(server, ledger, part)
        ticket = ended_ticket(server, ticket_id)
        check_at_rest(server, old if ticket["state"] == "rolled_back" else new)
    check_ledger(ledger, part)
    assert not victim.is_running()
    assert watch.most_at_once == 1
    wait_until(lambda: not watch.orphans(), 20, f"no orphans: {watch.orphans()}")
    phases = [phase["phase"] for phase in ticket["phases"]]
    assert "verifying" in phases
    if part in ENGINE_PARTS:
        assert ticket["state"] == "rolled_back"
        assert ticket["error"]["code"] in ("engine_ended", "engine_mute", "replica_lost")
        assert phases.count("loading") == 2  # the one that failed, and the old model's
        assert ledger.counts["refused"] + ledger.counts["error event"] == 2
    elif part == "switchboard":
        assert (ticket["state"], ticket["error"]["code"]) == ("failed", "switchboard_restarted")
        assert ledger.counts["complete"] == 2
    else:
        assert ticket["state"] == "done", ticket
        assert ledger.counts["complete"] + ledger.counts[RESET] == 2


def test_parts_killed_at_random_lose_nothing(server: Server) -> None:
    """One part a second, whichever, while three clients ask for both models."""
    resting(server)
    choose = random.Random(2026)
    killed = []
    with server.watch().watching() as watch:
        with steady_load(server.url, list(MODELS), num_clients=3, seed=11) as ledger:
            ends_at = time.monotonic() + KILLER_S
            never = threading.Event()
            while time.monotonic() < ends_at:
                # a part that is just being restarted cannot be killed: the next one then
                for part in choose.sample(PARTS, len(PARTS)):
                    if part not in killed[-1:] and victims.find(server, part):
                        kill(server, ledger, part)
                        killed.append(part)
                        break
                never.wait(1)
            began = time.monotonic()
            resident = wait_until(lambda: resident_of(server), TWO_LOADS_S, "a model serves")
            print(f"\nkilled {killed}; healthy again after {time.monotonic() - began:.1f} s")
        assert "Paris" in server.chat(resident_of(server) or resident).text
    assert ledger.lost == []
    assert watch.most_at_once == 1
    wait_until(lambda: not watch.orphans(), 20, f"no orphans: {watch.orphans()}")
    replicas = wait_until(lambda: one_each(server), 60, "one replica of each part")
    print(replicas)


def resident_of(server: Server) -> str | None:
    try:
        health = server.get("/health")
    except (httpx.HTTPError, ValueError):
        return None
    return health["resident"] if health.get("state") == "serving" else None


def one_each(server: Server) -> list[str] | None:
    """The replicas, if there is one gateway, one Switchboard, and one of one model."""
    names = [title.split(":")[-1] for title in victims.titles(server)]
    models = [name for name in names if name.startswith("qwen-")]
    rest = sorted(name for name in names if name not in models)
    return names if rest == ["Gateway", "Switchboard"] and len(models) == 1 else None


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("loading", "nothing"),
        ("draining", "every model"),
        ("loading", "every model"),
        ("verifying", "the arguments"),
    ],
)
def test_config_applied_during_a_switch_ends_with_one_engine(
    server: Server, phase: str, change: str
) -> None:
    """Deploying the same configuration again changes nothing; another one sets the deployments it
    changes back to one replica each, which must not take the place from the model that loads."""
    old, new = resting(server)
    config = yaml.safe_load(server.config.read_text())
    application = config["applications"][0]
    options = {"health_check_period_s": random.Random(phase + change).uniform(2, 3)}  # another
    if change == "the arguments":
        application["args"]["env_file"] = f"/nonexistent/{phase}"
    elif change != "nothing":
        names = ["qwen-vl", *MODELS]
        application["deployments"] = [{"name": name} | options for name in names]
    with server.watch().watching() as watch, ThreadPoolExecutor() as clients:
        if phase == "draining":
            begin_long_answer(server, clients, old, Ledger())
        ticket_id = begin_switch(server, new)
        wait_phase(server, phase)
        server.dashboard("PUT", "/api/serve/applications/", json=config)
        ticket = ended_ticket(server, ticket_id)
        print(ticket)
        if change != "the arguments":  # those are another program: all is started anew
            assert ticket["state"] == "done", ticket
            check_at_rest(server, new)
        wait_until(lambda: answers(server, old), TWO_LOADS_S, "the old model can be had")
        wait_until(lambda: answers(server, new), TWO_LOADS_S, "and the new one")
    assert watch.most_at_once == 1
    wait_until(lambda: one_each(server), 60, "one replica of each part")


def answers(server: Server, model: str) -> bool:
    try:
        return "Paris" in server.chat(model).text
    except httpx.HTTPError:
        return False
