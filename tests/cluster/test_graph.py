"""The graph on real Ray with real vLLM: one place, three models."""

import json

import pytest

from tests.cluster import victims
from tests.cluster.server import CAPITAL, Server, wait_until

pytestmark = pytest.mark.timeout(600)

PROBATION_S = 5  # configs/backend.yaml


def test_resident_model_answers_under_its_name_and_epoch(server: Server) -> None:
    server.switch("qwen-14b")
    answer = server.chat("qwen-14b")
    assert answer.status_code == 200
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["x-model"] == answer.json()["model"] == "qwen-14b"
    assert int(answer.headers["x-epoch"]) == server.get("/health")["epoch"]


def test_models_name_the_checkpoint_behind_each(server: Server) -> None:
    listing = {m["id"]: m for m in server.get("/models")["data"]}
    assert set(listing) == {"qwen-vl", "qwen-14b", "qwen-coder"}
    assert listing["qwen-14b"]["root"] == "demo/smollm2-135m-instruct"
    assert listing["qwen-vl"]["root"] == "demo/qwen2.5-vl-shapes"
    assert not any(model["untrained"] for model in listing.values())
    assert server.get("/v1/models")["data"] == server.get("/models")["data"]


def test_switch_there_and_back_never_two_engines(server: Server) -> None:
    """Each model answers in its turn, and no sample of the process table shows two engines."""
    server.switch("qwen-14b")
    with server.watch().watching() as watch:
        for model in ("qwen-coder", "qwen-14b"):
            ticket = server.switch(model)
            assert ticket.status_code == 200, ticket.text
            assert ticket.json()["state"] == "done"
            answer = server.chat(model)
            assert answer.headers["x-model"] == model
            assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert len(watch.seen) == 3  # the first, and one for each switch
    assert watch.most_at_once == 1


def test_switch_to_the_resident_model_loads_nothing(server: Server) -> None:
    server.switch("qwen-14b")
    epoch = server.wait_serving("qwen-14b")
    ticket = server.switch("qwen-14b")
    assert (ticket.status_code, ticket.json()["state"]) == (200, "done")
    assert server.get("/health")["epoch"] == epoch


def test_switch_without_wait_is_a_ticket_that_can_be_followed(server: Server) -> None:
    server.switch("qwen-14b")
    with server.http as http:
        begun = http.post("/admin/switch", json={"model": "qwen-coder"})
        assert begun.status_code == 202
        path = f"/admin/switch/{begun.json()['id']}"
        done = wait_until(
            lambda: (t := http.get(path).json())["state"] not in ("queued", "running") and t,
            120,
            "the ticket ends",
        )
    assert (done["state"], done["from"], done["to"]) == ("done", "qwen-14b", "qwen-coder")
    assert [p["phase"] for p in done["phases"]] == [
        "queued",
        "preparing",
        "draining",
        "unloading",
        "loading",
        "verifying",
    ]


def test_request_for_an_absent_model_waits_for_a_switch_with_heartbeats(server: Server) -> None:
    """A stream for the vision model: comments while it waits, then its text."""
    body = {"model": "qwen-vl", "messages": CAPITAL, "stream": True, "max_tokens": 4}
    with (
        server.http as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[0].startswith(": waiting for qwen-vl")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert {e["model"] for e in events} == {"qwen-vl"}
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert lines[-1] == "data: [DONE]"


def test_every_part_is_a_deployment_that_ray_shows(server: Server) -> None:
    """Five deployments, healthy, as `serve status` and the dashboard read them."""
    resident = server.get("/health")["resident"]
    server.wait_serving(resident)
    applications = server.dashboard("GET", "/api/serve/applications/").json()["applications"]
    application = applications["llm-backend"]
    assert application["status"] == "RUNNING"
    parts = application["deployments"]
    assert set(parts) == {"Gateway", "Switchboard", "qwen-vl", "qwen-14b", "qwen-coder"}
    assert {part["status"] for part in parts.values()} == {"HEALTHY"}
    for model in ("qwen-vl", "qwen-14b", "qwen-coder"):
        assert len(parts[model]["replicas"]) == (model == resident)
        held = parts[model]["deployment_config"]["ray_actor_options"]["resources"]
        assert held == {"node:__internal_head__": 0.85}


def test_ray_itself_refuses_a_second_model(server: Server) -> None:
    """Asked past the Switchboard for another model's replica, Ray leaves it unplaced."""
    server.switch("qwen-14b")
    path = "/api/v1/applications/llm-backend/deployments/qwen-coder"

    def replica_states() -> list[str]:
        listing = server.dashboard("GET", "/api/serve/applications/").json()
        deployments = listing["applications"]["llm-backend"]["deployments"]
        return [r["state"] for r in deployments["qwen-coder"]["replicas"]]

    server.dashboard("POST", f"{path}/scale", json={"target_num_replicas": 1})
    try:
        wait_until(lambda: replica_states() == ["STARTING"], 90, "the second replica waits")
        assert server.chat("qwen-14b").status_code == 200
        assert replica_states() == ["STARTING"]
    finally:
        server.dashboard("POST", f"{path}/scale", json={"target_num_replicas": 0})
    wait_until(lambda: not replica_states(), 90, "it is gone")


def test_bad_requests_are_openai_shaped(server: Server) -> None:
    with server.http as http:
        for path, body, status in [
            ("/v1/chat/completions", b'{"model": "gpt-4", "messages": [{}]}', 404),
            ("/v1/chat/completions", b"{", 400),
            ("/v1/chat/completions", b'{"model": "qwen-vl"}', 400),
            ("/admin/switch", b'{"model": "gpt-4"}', 404),
            ("/admin/switch", b'{"model": "qwen-vl", "gpu": 1}', 400),
            ("/v1/nothing", b"{}", 404),
        ]:
            answer = http.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == status, (path, body, answer.text)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("part", victims.ENGINE_PARTS)
def test_kill_9_recovers_by_itself_and_leaves_nothing(server: Server, part: str) -> None:
    """The same model comes back, never beside the old one."""
    resident = server.get("/admin/status")["desired"]
    epoch = server.wait_serving(resident)
    wait_until(
        lambda: server.get("/admin/status")["serving_for_s"] > PROBATION_S,
        90,
        "it is past probation",
    )
    watch = server.watch()
    (old,) = watch.engines().values()
    with watch.watching():
        victims.kill(server, part)
        server.wait_serving(resident, after_epoch=epoch)
    assert watch.most_at_once == 1
    assert not [p for p in old if p.is_running()]
    assert server.chat(resident).status_code == 200


def test_engine_socket_is_private(server: Server) -> None:
    server.wait_serving(server.get("/health")["resident"])
    (socket,) = (server.home / "run").glob("*-*.sock")
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0
