"""Coding agents as people install them: one whole tool turn each, against a real engine.

Their own prompts have 3,000 to 4,500 tokens, more than a minute of this CPU, so a short one stands
in their place; tools, fields, headers and streams are theirs. The demo's small model does not call
a tool by itself: `relay.py` has the first turn call one, and the program has to run it and send its
result back.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.settings import PROJECT
from tests import reaper
from tests.cluster.programs import program
from tests.cluster.relay import Call, Relay, relaying
from tests.cluster.server import Server

MODEL = "qwen-coder"  # as the README has it
TURN_S = "150"  # 5 s on two cores with nothing beside it
# The first test of a run installs its program and may start the server.
pytestmark = pytest.mark.timeout(600)
COMMAND, OUTPUT = "echo made by the tool | tee made.txt", "made by the tool"
PROMPT, SYSTEM = "Make the file made.txt.", "You run commands."

# Before the settings that the README has: the short prompt, and no calls to the maker.
CODEX = """\
model_instructions_file = "{system}"
skills.include_instructions = false
check_for_update_on_startup = false
analytics.enabled = false
"""


@pytest.fixture
def url(server: Server) -> str:
    """The server's address, with the model resident."""
    if server.get("/health")["resident"] != MODEL:
        assert server.switch(MODEL).status_code == 200
    server.wait_serving(MODEL)
    return server.url


@pytest.fixture
def claude_relay(url: str) -> Iterator[Relay]:
    with relaying(url, Call("Bash", "command", COMMAND)) as relay:
        yield relay


@pytest.fixture
def codex_relay(url: str) -> Iterator[Relay]:
    with relaying(url, Call("exec_command", "cmd", COMMAND)) as relay:
        yield relay


def told(kind: str, relay: Relay) -> str:
    """The block of the page in that language, with the relay's address."""
    section = (PROJECT / "serve_app" / "README.md").read_text().partition("## Programs\n")[2]
    block = section.partition(f"```{kind}\n")[2].partition("```")[0]
    assert "http://127.0.0.1:7000" in block
    return block.replace("http://127.0.0.1:7000", relay.url)


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a program prints that starts in an empty folder and ends well; it sees no settings of
    the user's. `timeout` ends its children too."""
    home, work = folder / "home", folder / "work"
    home.mkdir(exist_ok=True)
    work.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", reaper.MARK)}
    ended = subprocess.run(
        ["timeout", "--kill-after=5", TURN_S, *command],
        cwd=work,
        env=kept | {"HOME": str(home)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (work / "made.txt").read_text() == f"{OUTPUT}\n"
    return ended.stdout


def two_turns(relay: Relay) -> list[dict[str, Any]]:
    """What the program asked: once, and once more with the tool's result; both were answered."""
    assert [turn.status for turn in relay.turns] == [200, 200]
    return [turn.body for turn in relay.turns]


def test_claude_code_runs_a_tool(claude_relay: Relay, tmp_path: Path) -> None:
    """With the variables that the README names, all of its tools, and its own `max_tokens`."""
    claude = program("@anthropic-ai/claude-code", "2.1.197", "cli-wrapper.cjs")
    printed = run(
        [
            *claude,
            *("--print", PROMPT, "--output-format", "json", "--system-prompt", SYSTEM),
            *("--allowedTools", "Bash", "--disable-slash-commands"),
        ],
        tmp_path,
        **dict(re.findall(r"(ANTHROPIC_\w+)=(\S+)", told("bash", claude_relay))),
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    first, second = two_turns(claude_relay)
    assert len(first["tools"]) > 10
    assert first["max_tokens"] > 8192  # more than the model can say
    results = [
        block
        for message in second["messages"]
        for block in message["content"]
        if isinstance(block, dict) and block["type"] == "tool_result"
    ]
    assert [OUTPUT in json.dumps(block["content"]) for block in results] == [True]
    ended = json.loads(printed)
    assert (ended["is_error"], ended["num_turns"]) == (False, 2)
    assert "Done." in ended["result"]


def test_codex_runs_a_tool(codex_relay: Relay, tmp_path: Path) -> None:
    """With the provider that the README names, and all of its tools."""
    codex = program("@openai/codex", "0.169.0", "bin/codex.js")
    home, system = tmp_path / "home" / ".codex", tmp_path / "system.md"
    home.mkdir(parents=True)
    system.write_text(SYSTEM)
    settings = CODEX.format(system=system) + told("toml", codex_relay)
    (home / "config.toml").write_text(settings)
    printed = run(
        [
            *codex,
            *("exec", PROMPT, "--json", "--ephemeral", "--skip-git-repo-check"),
            *("--sandbox", "danger-full-access"),  # of a command that is ours
        ],
        tmp_path,
    )
    first, second = two_turns(codex_relay)
    assert "namespace" in {tool["type"] for tool in first["tools"]}  # not all are functions
    results = [item for item in second["input"] if item["type"] == "function_call_output"]
    assert [OUTPUT in json.dumps(item["output"]) for item in results] == [True]
    events = [json.loads(line) for line in printed.splitlines()]
    ran = [e["item"] for e in events if e.get("item", {}).get("type") == "command_execution"]
    assert ran[-1]["exit_code"] == 0
    assert "Done." in next(
        e["item"]["text"] for e in events if e.get("item", {}).get("type") == "agent_message"
    )
    assert events[-1]["type"] == "turn.completed"
