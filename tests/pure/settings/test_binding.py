"""Where the server listens: the file to deploy, and what the environment says over it."""

from pathlib import Path

import pytest
import yaml

from deployments.settings import PROJECT
from serve_app.launcher.foreground import with_address
from serve_app.launcher.preflight import PreflightError, read_deployment

SHIPPED = PROJECT / "serve_config.yaml"


def config_with_env_file(folder: Path, text: str) -> Path:
    """A deployment whose `.env` says `text`."""
    (folder / ".env").write_text(text)
    raw = yaml.safe_load(SHIPPED.read_text())
    raw["applications"][0]["args"]["env_file"] = str(folder / ".env")
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_shipped_address_is_loopback():
    assert read_deployment(SHIPPED)[:2] == ("127.0.0.1", 7000)


def test_environment_beats_the_file_for_the_address(tmp_path, monkeypatch):
    path = config_with_env_file(tmp_path, "LLM_BACKEND_PORT=7001\nLLM_BACKEND_HOST=::1\n")
    assert read_deployment(path)[:2] == ("::1", 7001)
    monkeypatch.setenv("LLM_BACKEND_PORT", "7002")
    assert read_deployment(path)[:2] == ("::1", 7002)


def test_wrong_variable_is_a_reason_not_to_start(tmp_path):
    path = config_with_env_file(tmp_path, "LLM_BACKEND_PORT=many\n")
    with pytest.raises(PreflightError, match=r"\.env: LLM_BACKEND_PORT: .*'many'"):
        read_deployment(path)


def test_same_address_deploys_the_file_itself(tmp_path):
    assert with_address(SHIPPED, "127.0.0.1", 7000, tmp_path) == SHIPPED
    assert list(tmp_path.iterdir()) == []


def test_other_address_deploys_a_copy_that_differs_in_nothing_else(tmp_path):
    copy = with_address(SHIPPED, "127.0.0.1", 7001, tmp_path)
    changed, shipped = (yaml.safe_load(path.read_text()) for path in (copy, SHIPPED))
    assert changed["http_options"].pop("port") == 7001
    del shipped["http_options"]["port"]
    assert changed == shipped
