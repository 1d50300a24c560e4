"""A question that was asked before costs no switch, on the real server."""

import time

import httpx
import pytest

from tests.cluster.server import CAPITAL, Server, wait_until

pytestmark = pytest.mark.timeout(600)


def test_a_repeated_question_to_a_model_that_is_not_loaded_costs_no_switch(server: Server) -> None:
    """Ask, switch away, ask again: the same text at once, and nobody switches."""
    server.switch("qwen-14b")
    first = server.chat("qwen-14b", cache="on")
    assert "Paris" in first.text
    assert first.headers["X-Cache"] == "miss"
    assert server.switch("qwen-coder").status_code == 200
    before = server.get("/admin/switches")["data"]
    began = time.monotonic()
    again = server.chat("qwen-14b", cache="on")
    took_s = time.monotonic() - began
    assert again.headers["X-Cache"] == "hit; switch=avoided"
    assert again.headers["X-Model"] == "qwen-14b"
    assert again.json()["choices"] == first.json()["choices"]
    assert again.json()["usage"] == first.json()["usage"]
    assert again.json()["id"] != first.json()["id"]
    assert server.get("/health")["resident"] == "qwen-coder"
    assert server.get("/admin/switches")["data"] == before
    assert took_s < 3  # a switch takes 5
    print(f"\nanswered in {took_s * 1000:.0f} ms, without a switch")


def test_a_repeated_stream_is_answered_while_a_switch_is_under_way(server: Server) -> None:
    """As a stream, with the same deltas."""
    body = {"model": "qwen-coder", "messages": CAPITAL, "temperature": 0, "max_tokens": 16}
    server.switch("qwen-coder")

    def ask() -> tuple[str, list[str]]:
        with server.http as http:
            answer = http.post("/v1/chat/completions", json=body | {"stream": True})
        assert answer.status_code == 200
        return answer.headers["X-Cache"], answer.text.removesuffix("\n\n").split("\n\n")

    first_label, first = ask()
    assert first[-1] == "data: [DONE]"
    ticket = httpx.post(f"{server.url}/admin/switch", json={"model": "qwen-14b"}).json()["id"]
    wait_until(lambda: server.get("/health")["resident"] is None, 30, "it serves no more")
    again_label, again = ask()
    assert server.get("/health")["state"] == "switching"
    assert (first_label, again_label) == ("miss", "hit; switch=avoided")
    assert [e.partition('"choices"')[2] for e in again] == [
        e.partition('"choices"')[2] for e in first
    ]
    path = f"/admin/switch/{ticket}"
    wait_until(lambda: server.get(path)["state"] not in ("queued", "running"), 120, "it ends")


def test_an_admin_sees_and_clears_the_cache(server: Server) -> None:
    """The counts of a real run."""
    server.switch("qwen-14b")
    labels = [server.chat("qwen-14b", cache="on", max_tokens=3).headers["X-Cache"] for _ in "ab"]
    assert labels == ["miss", "hit"]
    told = server.get("/admin/cache")
    assert told["url"] == "memory://"
    assert told["entries"] >= 1
    assert told["hits"] >= 1
    cleared = httpx.delete(f"{server.url}/admin/cache").json()
    assert cleared["deleted"] == told["entries"]
    assert server.get("/admin/cache")["entries"] == 0
    assert server.chat("qwen-14b", cache="on", max_tokens=3).headers["X-Cache"] == "miss"
