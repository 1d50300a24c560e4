"""A part of the graph is killed and comes back: what runs is found, and no second engine starts."""

import httpx
import pytest

from tests.cluster import victims
from tests.cluster.server import Server, wait_until

pytestmark = pytest.mark.timeout(600)

PARTS = ["switchboard", "gateway", "controller"]


def answers(server: Server, model: str) -> bool:
    """Whether the model answers; a request during a restart may be refused, and is sent again."""
    try:
        answer = server.chat(model)
        return answer.status_code == 200 and "Paris" in answer.text
    except httpx.HTTPError:
        return False


def phase(server: Server) -> str | None:
    """The phase of the switch that is under way."""
    switch = server.get("/admin/status")["switch"]
    return switch and switch["phase"]


@pytest.mark.parametrize("part", ["api server", "supervisor", "replica"])
def test_new_engine_killed_while_loading_brings_the_old_model_back(
    server: Server, part: str
) -> None:
    """F1 in the phase of loading: the ticket says so, and there are never two engines."""
    server.switch("qwen-14b")
    with server.watch().watching() as watch:
        with server.http as http:
            begun = http.post("/admin/switch", json={"model": "qwen-coder"}).json()
        path = f"/admin/switch/{begun['id']}"
        wait_until(lambda: any("qwen-coder" in e for e in watch.engines()), 120, "it is loading")
        victims.kill(server, part)
        ticket = wait_until(
            lambda: (t := server.get(path))["state"] not in ("queued", "running") and t,
            300,
            "the switch ends",
        )
    assert ticket["state"] == "rolled_back"
    assert ticket["error"]["code"] in ("engine_ended", "replica_lost")
    assert watch.most_at_once == 1
    assert answers(server, "qwen-14b")


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_serving_leaves_the_engine_alone(server: Server, part: str) -> None:
    """The same engine, under the same epoch, answers again."""
    server.switch("qwen-14b")
    epoch = server.wait_serving("qwen-14b")
    with server.watch().watching() as watch:
        victims.kill(server, part)
        wait_until(lambda: answers(server, "qwen-14b"), 120, "it answers")
        wait_until(lambda: server.wait_serving("qwen-14b") == epoch, 180, "under the same epoch")
    assert watch.most_at_once == 1
    assert len(watch.seen) == 1


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_loading_ends_with_one_engine(server: Server, part: str) -> None:
    """Whichever model it ends with, there is one engine, and each model can be had."""
    server.switch("qwen-14b")
    with server.watch().watching() as watch:
        with server.http as http:
            http.post("/admin/switch", json={"model": "qwen-coder"})
        wait_until(lambda: phase(server) == "loading", 120, "the new model is loading")
        victims.kill(server, part)
        wait_until(lambda: answers(server, "qwen-coder"), 180, "the new model can be had")
        wait_until(lambda: answers(server, "qwen-14b"), 180, "the old one too")
    assert watch.most_at_once == 1
