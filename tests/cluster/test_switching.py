"""Switching under load: nothing is lost, and there are never two engines."""

import httpx
import pytest

from tests.cluster.ledger import steady_load
from tests.cluster.server import CAPITAL, Server, wait_until

pytestmark = pytest.mark.timeout(900)

NUM_SWITCHES = 10


def test_switches_under_load_lose_nothing(server: Server) -> None:
    """Admins switch to and fro while clients ask for both models."""
    server.switch("qwen-14b")
    first = server.get("/health")["epoch"]
    models = ["qwen-14b", "qwen-coder"]
    with (
        server.watch().watching() as watch,
        steady_load(server.url, models, num_clients=3, seed=7) as ledger,
    ):
        for number in range(NUM_SWITCHES):
            ticket = server.switch(models[(number + 1) % 2], drain_timeout_s=120).json()
            assert ticket["state"] == "done", ticket
    assert ledger.lost == []
    assert ledger.counts["complete"] >= NUM_SWITCHES
    assert ledger.errors == []
    assert watch.most_at_once == 1
    assert server.get("/health")["epoch"] >= first + NUM_SWITCHES
    models_of = {}
    for model, epoch in ledger.epochs:
        assert models_of.setdefault(epoch, model) == model  # an epoch is one model's


def test_forced_switch_ends_streams_with_one_error_event(server: Server) -> None:
    """Drain 0 cuts what runs, and says so on the stream."""
    server.switch("qwen-14b")
    body = {
        "model": "qwen-14b",
        "messages": CAPITAL,
        "stream": True,
        "max_tokens": 2000,
        "ignore_eos": True,
    }
    with server.http as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if '"content":' in line)
        begun = httpx.post(
            f"{server.url}/admin/switch", json={"model": "qwen-coder", "drain_timeout_s": 0}
        )
        assert begun.status_code == 202
        data = [line for line in lines if line.startswith("data: ")]
    assert '"code": "model_switching"' in data[-1]
    assert sum('"error"' in line for line in data) == 1
    assert "data: [DONE]" not in data
    path = f"/admin/switch/{begun.json()['id']}"
    ticket = wait_until(
        lambda: (t := server.get(path))["state"] not in ("queued", "running") and t, 180, "it ends"
    )
    drained = next(p["seconds"] for p in ticket["phases"] if p["phase"] == "draining")
    assert ticket["state"] == "done"
    assert drained < 10  # on a machine that does other things; the answer takes minutes


def test_switch_lets_a_running_answer_end(server: Server) -> None:
    """Within the drain timeout a stream is complete, and the switch waits for it."""
    server.switch("qwen-14b")
    body = {
        "model": "qwen-14b",
        "messages": CAPITAL,
        "stream": True,
        "max_tokens": 60,
        "ignore_eos": True,
    }
    with server.http as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if '"content":' in line)
        httpx.post(f"{server.url}/admin/switch", json={"model": "qwen-coder"})
        data = [line for line in lines if line.startswith("data: ")]
    assert data[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in data[-2]
    server.wait_serving("qwen-coder")
