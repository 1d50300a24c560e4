"""Where the command line finds the keys of the server that it asks."""

import asyncio
import os
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from deployments.settings import Settings, environment
from serve_app.cli import app
from serve_app.launcher import pidfile
from tests.gateway.conftest import Front, Whole


@pytest.fixture
def settings(settings: Settings) -> Settings:
    keys = {"api_keys": (SecretStr("user-key"),), "admin_keys": (SecretStr("admin-key"),)}
    return settings.model_copy(update=keys)


@pytest.fixture
def env_file(tmp_path: Path, front: Front, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's `.env`, and a server that runs on its home."""
    path = tmp_path / ".env"
    monkeypatch.setattr(environment, "ENV_FILE", path)
    monkeypatch.setenv("LLM_BACKEND_HOME", str(tmp_path))
    monkeypatch.delenv("LLM_BACKEND_URL", raising=False)
    pidfile.note(tmp_path, os.getpid(), f"http://127.0.0.1:{front.port}", "cpu-demo")
    return path


async def exit_code(*arguments: str) -> int:
    return (await asyncio.to_thread(CliRunner().invoke, app, list(arguments))).exit_code


def write_keys(env_file: Path) -> None:
    env_file.write_text("LLM_BACKEND_API_KEY=user-key,other\nLLM_BACKEND_ADMIN_KEY=admin-key\n")


async def test_the_server_of_this_machine_is_shown_the_keys_of_its_env_file(
    whole: Whole, front: Front, env_file: Path
) -> None:
    """A key that is given beats the file's, and no server elsewhere is shown the file's."""
    assert await exit_code("models") == await exit_code("status") == 1
    write_keys(env_file)
    assert await exit_code("models") == await exit_code("status") == 0
    assert await exit_code("models", "--key", "wrong") == 1
    assert await exit_code("models", "--url", f"http://127.0.0.1:{front.port}") == 1


def test_an_env_file_that_can_not_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / ".env"
    monkeypatch.setattr(environment, "ENV_FILE", env_file)
    monkeypatch.delenv("LLM_BACKEND_URL", raising=False)
    env_file.write_text("LLM_BACKEND_PORT=seventy\n")
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [result.stderr.strip()]
    assert "LLM_BACKEND_PORT" in result.stderr
