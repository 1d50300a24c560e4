"""A part of the graph is killed and comes back: what runs is found, and no second engine starts."""

import httpx
import psutil
import pytest

from tests.cluster.server import Server, wait_until

pytestmark = pytest.mark.timeout(400)

PARTS = [
    "ServeReplica:llm-backend:Switchboard",
    "ServeReplica:llm-backend:Gateway",
    "ServeController",
]


def kill(server: Server, part: str) -> None:
    tree = psutil.Process(server.process.pid).children(recursive=True)
    next(p for p in tree if f"ray::{part}" in " ".join(p.cmdline())).kill()


def answers(server: Server, model: str) -> bool:
    """Whether the model answers; a request during a restart may be refused, and is sent again."""
    try:
        answer = server.chat(model)
        return answer.status_code == 200 and "Paris" in answer.text
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_serving_leaves_the_engine_alone(server: Server, part: str) -> None:
    """S10: the same engine, under the same epoch, answers again."""
    server.switch("qwen-14b")
    epoch = server.wait_serving("qwen-14b")
    with server.watch().watching() as watch:
        kill(server, part)
        wait_until(lambda: answers(server, "qwen-14b"), 60, "it answers")
        wait_until(lambda: server.wait_serving("qwen-14b") == epoch, 30, "under the same epoch")
    assert watch.most_at_once == 1
    assert len(watch.seen) == 1


@pytest.mark.parametrize("part", PARTS)
def test_part_killed_while_loading_ends_with_one_engine(server: Server, part: str) -> None:
    """S10: whichever model it ends with, there is one engine, and each model can be had."""
    server.switch("qwen-14b")
    with server.watch().watching() as watch:
        with server.http as http:
            http.post("/admin/switch", json={"model": "qwen-coder"})
        loading = lambda: (server.get("/admin/status")["switch"] or {}).get("phase") == "loading"  # noqa: E731
        wait_until(loading, 30, "the new model is loading")
        kill(server, part)
        wait_until(lambda: answers(server, "qwen-coder"), 120, "the new model can be had")
        wait_until(lambda: answers(server, "qwen-14b"), 120, "the old one too")
    assert watch.most_at_once == 1
