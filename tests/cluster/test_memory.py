"""The memory plan and the amounts freed, on real engines."""

from tests.cluster.server import Server

GIB = 2**30


def test_dry_run_plans_the_host_and_a_switch_gives_its_memory_back(server: Server) -> None:
    """The plan needs no less than the engine is then measured to hold."""
    server.switch("qwen-14b")
    with server.http as http:
        body = {"model": "qwen-coder", "dry_run": True}
        would = http.post("/admin/switch", json=body).json()
    plan = would["memory"]
    assert would["blockers"] == []
    assert (plan["fits"], plan["device"], plan["reason"]) == (True, "cpu", None)
    assert plan["kv_room_tokens"] >= plan["context_wanted_tokens"] == 8192
    assert 0 < plan["free_bytes"] < plan["available_bytes"] <= plan["total_bytes"]
    assert server.get("/health")["resident"] == "qwen-14b"

    server.switch("qwen-coder")
    memory = server.get("/admin/status")["memory"]
    assert memory["cycles"][-1]["model"] == "qwen-14b"
    assert GIB // 4 < memory["freed_last_bytes"] < plan["needed_bytes"]
    assert (memory["left_last_bytes"], memory["drift_bytes"], memory["warning"]) == (0, 0, None)
