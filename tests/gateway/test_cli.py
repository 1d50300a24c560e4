"""The command line against a gateway: what it prints, and how it exits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.launcher import pidfile
from serve_app.launcher.ports import free_port
from tests.gateway.conftest import A, B, Backend, Front, Whole, until
from tests.gateway.fake_engine import TEXT
from tests.gateway.scripted import Scripted
from tests.gateway.test_pictures import address, encoded
from tests.pure.switchboard.fake_host import BROKEN
from tests.terminal import Terminal

Cli = Callable[..., Awaitable[Result]]


@pytest.fixture
def cli(front: Front) -> Cli:
    """Runs a command against the gateway that is there."""

    async def run(*arguments: str, stdin: str | None = None, port: int | None = None) -> Result:
        url = ["--url", f"http://127.0.0.1:{port or front.port}"]
        # in a thread: the gateway lives in this one's loop
        result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *url], stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        return result

    return run


async def test_status_shows_what_is_resident(whole: Whole, cli: Cli) -> None:
    """A table for people, everything for scripts."""
    table = (await cli("status")).stdout.splitlines()
    assert table[0].split() == ["MODEL", "TASK", "STATE", "SINCE", "SIZE", "UNTIL"]
    assert table[1].split()[:3] == [A, "generate", "serving"]
    assert json.loads((await cli("status", "--json")).stdout)["resident"] == A


async def test_models_shows_every_model(whole: Whole, cli: Cli) -> None:
    """With what is really behind it."""
    lines = (await cli("models")).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [A, "resident"],
        [B, "absent"],
        ["qwen-vl", "absent"],
    ]
    assert len(json.loads((await cli("models", "--json")).stdout)) == 3


async def test_health_is_a_line_a_part(whole: Whole, cli: Cli) -> None:
    """Exit code 0 while all is well."""
    result = await cli("health")
    assert result.exit_code == 0
    parts = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert set(parts) >= {"gateway", "switchboard", A, B}
    assert set(parts.values()) == {"ok"}


async def test_health_fails_where_a_part_does(backend: Backend, cli: Cli) -> None:
    """A model that could not be loaded, a Switchboard that is away: each by its name."""
    await backend.fail(A, 1)
    await backend.switchboard.go_away()
    backend.switchboard.answer = {"epoch": 0}
    result = await cli("health", "--json")
    assert result.exit_code == 1
    problems = {p["part"]: p["detail"] for p in json.loads(result.stdout) if p["state"] != "ok"}
    assert problems == {
        A: "weights are cut short",
        "switchboard": "The Switchboard cannot be reached; it may be restarting.",
    }


@pytest.mark.parametrize("command", ["health", "status", "events", "unload"])
async def test_nothing_there_is_one_line_and_exit_code_3(cli: Cli, command: str) -> None:
    """With the address."""
    port = free_port()
    result = await cli(command, port=port)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"Nothing answers at http://127.0.0.1:{port}.\n"


async def test_a_switch_is_watched_to_its_end(whole: Whole, cli: Cli) -> None:
    """Each phase with its seconds; the result alone on standard output."""
    result = await cli("switch", B)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{B} serves, after ")
    phases = [line.split()[0] for line in result.stderr.splitlines()]
    assert phases == ["queued", "preparing", "draining", "unloading", "loading", "verifying"]
    assert (await cli("switch", B)).stdout == f"{B} serves already\n"


async def test_a_switch_that_fails_says_why(whole: Whole, cli: Cli) -> None:
    """Exit code 1; as JSON, the ticket."""
    whole.host.faults[B].extend([BROKEN] * 6)
    result = await cli("switch", B)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith(f"rolled back to {A}: the engine ended")
    result = await cli("switch", B, "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["state"] == "rolled_back"


async def test_a_dry_run_names_what_is_in_the_way(whole: Whole, cli: Cli) -> None:
    """And nothing happens."""
    assert (await cli("lease", A, "--minutes", "5", "--owner", "renders")).exit_code == 0
    result = await cli("switch", B, "--dry-run")
    assert f"{A} -> {B}" in result.stdout
    assert f"in the way: {A} is leased to renders" in result.stdout
    assert whole.host.loads == [A]


async def test_a_lease_is_taken_shown_and_ended(whole: Whole, cli: Cli) -> None:
    """Somebody else's is not taken away by a second."""
    taken = await cli("lease", B, "--seconds", "300", "--owner", "renders")
    assert (
        taken.stdout.splitlines()[1]
        == f"{B} stays resident for 5 min; `llm-backend lease --end` ends the lease."
    )
    assert "leased to renders" in (await cli("status")).stdout
    other = await cli("lease", A, "--owner", "somebody")
    assert (other.exit_code, other.stderr) == (1, f"{B} is leased to renders.\n")
    assert (await cli("lease", "--end")).stdout == f"The lease of {B} has ended.\n"
    assert (await cli("lease", "--end")).stdout == "There was no lease.\n"


@pytest.mark.parametrize(
    "arguments", [["lease"], ["lease", A, "--minutes", "1", "--seconds", "1"], ["switch"], ["x"]]
)
async def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    """Before anything is asked."""
    assert (await cli(*arguments)).exit_code == 2


async def test_an_unload_frees_the_place(whole: Whole, cli: Cli) -> None:
    """And status says so."""
    assert (await cli("unload")).stdout.startswith("No model is resident, after ")
    assert (await cli("status")).stdout.splitlines()[1].split()[2] == "empty"


async def test_an_unknown_model_is_one_line(whole: Whole, cli: Cli) -> None:
    """As the backend words it."""
    result = await cli("switch", "nope")
    assert result.exit_code == 1
    assert result.stderr == (
        "The model `nope` does not exist. Available models: qwen-14b, qwen-coder, qwen-vl.\n"
    )


async def test_a_chat_answers_a_prompt_or_standard_input(whole: Whole, cli: Cli) -> None:
    """By the resident model where none is named."""
    for result in (
        await cli("chat", "say something"),
        await cli("chat", A, "hello"),
        await cli("chat", A, stdin="hello"),
    ):
        assert (result.exit_code, result.stdout) == (0, TEXT + "\n")
    asked = [json.loads(body)["messages"] for body in whole.engines[A].bodies]
    assert [messages[0]["content"] for messages in asked] == ["say something", "hello", "hello"]


async def test_a_chat_shows_pictures(backend: Backend, cli: Cli, tmp_path: Path) -> None:
    """As data addresses: the backend fetches nothing."""
    engine = await backend.serving("qwen-vl")
    picture = tmp_path / "shot.png"
    picture.write_bytes(encoded())
    asked = ["chat", "qwen-vl", "what is this", "--image", str(picture), "--system", "be brief"]
    assert (await cli(*asked)).exit_code == 0
    system, user = json.loads(engine.bodies[-1])["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][0]["image_url"]["url"] == address(encoded())
    other = tmp_path / "notes.txt"
    other.touch()
    assert (
        await cli("chat", A, "x", "--image", str(other))
    ).stderr == f"{other} is not a picture.\n"


async def test_a_chat_prints_nothing_that_steers_the_terminal(backend: Backend, cli: Cli) -> None:
    """Whatever a model was led to say."""
    engine = await backend.serving(A)
    engine.model = A
    engine.tokens = ["\x1b]0;title\x07", "text\n", "\x9b2J"]
    result = await cli("chat", A, "hello")
    assert result.stdout == "]0;titletext\n2J\n"


async def test_a_talk_goes_on_after_a_stopped_answer(whole: Whole) -> None:
    """Ctrl-C ends the answer, Ctrl-D the talk; what was stopped is not part of it."""
    engine = whole.engines[A]
    terminal = Terminal(
        *(sys.executable, "-m", "serve_app.cli", "chat", "--url", whole.url),
        environment=dict(os.environ),
    )
    try:
        await until(lambda: ">>> " in terminal.shown, 30)
        engine.next_token.clear()
        terminal.type("one\n")
        async with asyncio.timeout(60):
            await engine.begun.acquire()
        terminal.type("\x03")
        await until(lambda: "(stopped)" in terminal.shown, 10)
        engine.next_token.set()
        for text in ("two", "three"):
            terminal.type(f"{text}\n")
            shown = f"{text}\r\n" + (TEXT + "\n>>> ").replace("\n", "\r\n")
            await until(lambda shown=shown: shown in terminal.shown, 10)
        terminal.type("/image /nowhere.png\n")
        await until(lambda: "There is no file /nowhere.png." in terminal.shown, 10)
        terminal.type("\x04")
        assert await asyncio.to_thread(terminal.process.wait, 10) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        await asyncio.to_thread(terminal.close)
    asked = [json.loads(body)["messages"] for body in engine.bodies]
    said = [(m["role"], m["content"]) for m in asked[-1]]
    assert said == [("user", "two"), ("assistant", TEXT), ("user", "three")]


async def test_the_cache_is_shown_and_cleared(front: Front, cli: Cli) -> None:
    """Whatever the backend tells of it."""
    front.app = script = Scripted()
    script.answers.extend([{"state": "ok", "entries": 3}, {"deleted": 3}])
    assert (await cli("cache", "stats")).stdout == "state    ok\nentries  3\n"
    assert json.loads((await cli("cache", "clear", "--json")).stdout) == {"deleted": 3}
    assert [request.path for request in script.requests] == ["/admin/cache"] * 2


async def test_events_are_json_lines_until_ctrl_c(backend: Backend) -> None:
    """As a process of its own, which a signal ends without a word."""
    url = f"http://127.0.0.1:{backend.port}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serve_app.cli", "events", "--json", "--url", url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    async with asyncio.timeout(60):
        assert json.loads(await process.stdout.readline())["event"] == "connected"
        await backend.switchboard.happen("lease", lease=None)
        assert json.loads(await process.stdout.readline())["data"] == {"lease": None}
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_without_an_address_the_server_of_this_home_is_asked(
    whole: Whole, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever port it was started."""
    monkeypatch.setenv("LLM_BACKEND_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLM_BACKEND_URL", raising=False)
    pidfile.note(tmp_path / "home", os.getpid(), f"http://127.0.0.1:{front.port}", "cpu-demo")
    result = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--json"])
    assert json.loads(result.stdout)["resident"] == A


def test_help_brings_nothing_heavy() -> None:
    """So that it and completion answer at once; pydantic comes with the settings."""
    program = (
        "import sys; from serve_app.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    assert "typer" in loaded.split()
    heavy = {"ray", "vllm", "torch", "httpx", "aiohttp", "fastapi", "huggingface_hub"}
    assert not heavy & set(loaded.split())


def test_a_shell_can_complete() -> None:
    """The script that `--install-completion` installs asks the program itself."""
    environment = os.environ | {"_LLM_BACKEND_COMPLETE": "complete_bash"}
    words = {"COMP_WORDS": "llm-backend sw", "COMP_CWORD": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("llm-backend"))],
        env=environment | words,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["switch"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with logs, and no server."""
    monkeypatch.setenv("LLM_BACKEND_HOME", str(tmp_path))
    monkeypatch.delenv("LLM_BACKEND_URL", raising=False)
    (tmp_path / "logs").mkdir()
    lines = "INFO 01-01 10:00:00 [a] old\nERROR 11-22 19:00:00 [b] out of memory\n  File x\n"
    (tmp_path / "logs" / "qwen-14b.log").write_text(lines)
    (tmp_path / "logs" / "gateway.log").write_text('{"event": "up"}\n')
    return tmp_path


def test_logs_of_a_dead_server_are_read_from_its_files(home: Path) -> None:
    """The last lines say why."""
    last = CliRunner().invoke(app, ["logs", A, "-n", "2"])
    assert last.stdout == "ERROR 11-22 19:00:00 [b] out of memory\n  File x\n"
    every = CliRunner().invoke(app, ["logs", "all"])
    assert every.stdout.splitlines()[0] == 'gateway | {"event": "up"}'
    assert len(every.stdout.splitlines()) == 4
    assert CliRunner().invoke(app, ["logs", A, "--since", "2000-01-01"]).stdout.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["redis"], 1, "There is no log of redis in"),
        (["nope"], 1, "There is no log 'nope'; name one of gateway, switchboard, "),
        ([A, "--since", "soon"], 2, "'soon' is not a time; give"),
    ],
)
def test_logs_that_cannot_be_shown_are_one_line(
    home: Path, arguments: list[str], code: int, message: str
) -> None:
    """In one line."""
    result = CliRunner().invoke(app, ["logs", *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


async def test_logs_are_followed(home: Path) -> None:
    """Until Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serve_app.cli", "logs", A, "-f", "-n", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"  File x\n"
        with (home / "logs" / "qwen-14b.log").open("a") as log:
            log.write("more\n")
        assert await process.stdout.readline() == b"more\n"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_logs_of_a_remote_backend_come_over_http(front: Front, cli: Cli) -> None:
    """Each service's lines from the moment that was asked for."""
    old, new = "ERROR 01-01 10:00:00 [a] x", "ERROR 2999-01-01 10:00:00 [b] y"
    text = "".join(f"{name} | {line}\n" for name in (A, B) for line in (old, new, "  File"))
    front.app = script = Scripted()
    script.answers.extend([text.encode()] * 2)
    assert (await cli("logs", "-n", "7")).stdout == text
    shown = (await cli("logs", "--since", "1h")).stdout.splitlines()
    assert shown == [f"{name} | {line}" for name in (A, B) for line in (new, "  File")]
    assert {request.path for request in script.requests} == {"/admin/logs/all"}


async def test_logs_of_a_remote_backend_are_followed(front: Front, cli: Cli) -> None:
    """To the end of its stream; heartbeats are no lines."""
    front.app = script = Scripted()
    script.answers.append(f": nothing yet\n\nevent: {A}\ndata: one\n\n".encode())
    assert (await cli("logs", A, "-f")).stdout == "one\n"


# --- programs of other makers ---

SHOW = """\
#!/bin/sh
echo "arguments: $*"
echo "base: $ANTHROPIC_BASE_URL $ANTHROPIC_MODEL $OPENAI_API_BASE"
"""


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which each tool is a script that shows what it was given."""
    for name in ("claude", "codex", "aider", "cn"):
        (tmp_path / name).write_text(SHOW)
        (tmp_path / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LLM_BACKEND_HOME": str(tmp_path / "home"),
    }


async def launched(front: Front, tools: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """A process of its own, whose place the tool takes."""
    command = [sys.executable, "-c", "from serve_app.cli import main; main()", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=tools | {"LLM_BACKEND_URL": f"http://127.0.0.1:{front.port}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_launch_starts_a_tool_on_this_backend_with_its_own_arguments(
    whole: Whole, front: Front, tools: dict[str, str]
) -> None:
    code, out, _ = await launched(front, tools, "launch", "claude", "--", "--print", "Hello there")
    assert code == 0
    assert out == f"arguments: --print Hello there\nbase: {whole.url} {B} \n"
    code, out, _ = await launched(front, tools, "launch", "aider", "--model", A, "--help")
    assert code == 0
    assert f"--model openai/{A} --no-show-model-warnings --help" in out
    assert f"{whole.url}/v1" in out


async def test_launch_writes_a_tools_settings_into_its_own_folder(
    whole: Whole, front: Front, tools: dict[str, str], tmp_path: Path
) -> None:
    code, out, _ = await launched(front, tools, "launch", "continue")
    path = tmp_path / "home" / "tools" / "continue.yaml"
    assert (code, out.splitlines()[0]) == (0, f"arguments: --config {path}")
    assert f"apiBase: {whole.url}/v1" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


async def test_launch_says_how_to_install_a_tool(
    whole: Whole, front: Front, tools: dict[str, str]
) -> None:
    code, _, err = await launched(front, tools | {"PATH": "/nonexistent"}, "launch", "opencode")
    assert (code, err) == (
        1,
        "opencode is not installed. Install it with: npm install -g opencode-ai\n",
    )


async def test_config_prints_the_settings_of_a_tool(whole: Whole, cli: Cli) -> None:
    printed = (await cli("config", "claude")).stdout
    assert f"export ANTHROPIC_BASE_URL={whole.url}\n" in printed
    assert f"-c 'model=\"{B}\"'" in (await cli("config", "codex")).stdout
    wrong = await cli("config", "emacs")
    assert wrong.exit_code == 2
    assert "there is for claude, codex, opencode, aider, continue" in wrong.stderr
    unknown = await cli("config", "codex", "--model", "gpt-4")
    assert (unknown.exit_code, "does not exist" in unknown.stderr) == (2, True)
