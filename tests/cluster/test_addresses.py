"""The addresses that models had of their own; what else listens: `test_other_users.py`."""

import httpx
import pytest

from tests.cluster.server import CAPITAL, Server, wait_until

pytestmark = pytest.mark.timeout(600)


def answer_at(port: int, model: str) -> httpx.Response:
    body = {"model": model, "messages": CAPITAL, "temperature": 0, "max_tokens": 8}
    return httpx.post(f"http://localhost:{port}/v1/chat/completions", json=body, timeout=180)


def is_open(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def test_old_address_works_while_its_model_is_resident(server: Server) -> None:
    """The gateway answers there, counts and all; once the model has gone, nothing listens."""
    ports = {model: server.old_port(model) for model in ("qwen-14b", "qwen-coder")}
    for model, port in ports.items():
        server.switch(model)
        wait_until(lambda port=port: is_open(port), 60, f"port {port} is open")
        answer = answer_at(port, model)
        assert "Paris" in answer.text
        assert answer.headers["x-model"] == model
        others = [other for other in ports.values() if other != port]
        assert not any(map(is_open, others))
