"""What the README shows is what a reader gets who types it, on a real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.settings import PROJECT
from tests.cluster.server import Server

README = (PROJECT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:7000"
LIMIT_S = 240
pytestmark = pytest.mark.timeout(600)


def blocks(kind: str = "") -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def typed(server: Server, command: list[str], stdin: str | None = None) -> str:
    """What a command prints that ends well, for a reader with this server."""
    tools = Path(sys.executable).parent
    result = subprocess.run(
        command,
        env=os.environ | {"LLM_BACKEND_URL": server.url, "PATH": f"{tools}:{os.environ['PATH']}"},
        input=stdin,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_requests_are_answered(server: Server) -> None:
    """By curl: a chat, and a switch that is over when it is answered."""
    chat, switch = (block for block in blocks() if block.startswith("curl "))
    answer = json.loads(typed(server, ["sh", "-c", chat.replace(ADDRESS, server.url)]))
    assert answer["model"] == "qwen-14b"
    assert "Paris" in answer["choices"][0]["message"]["content"]
    ticket = json.loads(typed(server, ["sh", "-c", switch.replace(ADDRESS, server.url)]))
    assert (ticket["state"], ticket["to"]) == ("done", "qwen-coder")


def test_the_python_example_runs(server: Server) -> None:
    (example,) = blocks("python")
    program = example.replace("LLMClient()", f'LLMClient("{server.url}")')
    assert program != example
    out = typed(server, [sys.executable, "-"], program)
    assert "'status': 'ok'" in out
    assert len(out.splitlines()) >= 3  # the health, an answer, a stream
    assert server.get("/health")["resident"] == "qwen-coder"
    assert server.get("/admin/status")["lease"] is None


def test_the_commands_run(server: Server) -> None:
    """All but `start`, and each that a comment names beside one."""
    (block,) = (block for block in blocks() if block.startswith("llm-backend start"))
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    commands = [line for line in lines if line != "llm-backend start"]
    assert len(commands) == len(lines) - 1 >= 4
    for command in [
        *commands,
        *(f"llm-backend {name}" for name in ("health", "status", "models", "lease --end")),
        "llm-backend switch qwen-coder --dry-run",
    ]:
        assert typed(server, ["sh", "-c", command]), command
