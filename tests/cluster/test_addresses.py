"""Every address the server opens: the public one, the old ones while they are due, and no other."""

import httpx
import psutil
import pytest

from tests.cluster.server import CAPITAL, Server, wait_until

pytestmark = pytest.mark.timeout(600)


def answer_at(port: int, model: str) -> httpx.Response:
    body = {"model": model, "messages": CAPITAL, "temperature": 0, "max_tokens": 8}
    return httpx.post(f"http://localhost:{port}/v1/chat/completions", json=body, timeout=60)


def is_open(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_old_address_works_while_its_model_is_resident(server: Server) -> None:
    """The gateway answers there, counts and all; once the model has gone, nothing listens."""
    ports = {model: server.old_port(model) for model in ("qwen-14b", "qwen-coder")}
    for model, port in ports.items():
        server.switch(model)
        wait_until(lambda port=port: is_open(port), 10, f"port {port} is open")
        answer = answer_at(port, model)
        assert "Paris" in answer.text
        assert answer.headers["x-model"] == model
        others = [other for other in ports.values() if other != port]
        assert not any(map(is_open, others))


def test_only_ray_listens_beyond_this_machine(server: Server) -> None:
    """And its own ports ask for its token; ours are on loopback, engines on private sockets."""
    server.switch("qwen-14b")
    found: dict[tuple[str, int], str] = {}
    for process in server.family():
        try:
            for c in process.net_connections("tcp"):
                if c.status == psutil.CONN_LISTEN:
                    found[c.laddr.ip, c.laddr.port] = " ".join(process.cmdline())[:80]
        except psutil.Error:
            continue
    public = int(server.url.rpartition(":")[2])
    assert ("127.0.0.1", public) in found
    loopback = ("127.", "::1", "::ffff:127.")
    wide = {port: who for (ip, port), who in found.items() if not ip.startswith(loopback)}
    assert public not in wide
    assert not [who for who in wide.values() if "haproxy" in who or "engine_main" in who]
    for port, who in wide.items():
        assert not _answers_http(port), (port, who)
    for socket in (server.home / "run").glob("*.sock"):
        assert socket.stat().st_mode & 0o077 == 0, socket


def _answers_http(port: int) -> bool:
    """Whether anybody without a token is told anything there, metrics apart."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and "# HELP" not in answer.text
