"""The environment and `.env`: which wins, and what is wrong with them."""

import os
import re
from pathlib import Path

import pytest

from deployments.engine.environment import base_environment
from deployments.settings import PROJECT, SettingsError
from deployments.settings.environment import Environment, export_file, read_environment


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_without_environment_and_file_nothing_is_said(env_file, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert read_environment(env_file) == Environment()
    assert Environment() == Environment.model_validate({})


def test_file_is_read_with_quotes_comments_and_exports(env_file):
    env_file.write_text(
        "# a comment\nexport LLM_BACKEND_HOST='0.0.0.0'\nLLM_BACKEND_PORT=7001  # why\n"
        'LLM_BACKEND_API_KEY="a$b"\nHF_TOKEN=of another program\n'
    )
    machine = read_environment(env_file)
    assert (machine.host, machine.port) == ("0.0.0.0", 7001)  # noqa: S104  as text
    assert machine.api_keys[0].get_secret_value() == "a$b"


def test_empty_value_counts_as_none_and_beats_the_file(env_file, monkeypatch):
    env_file.write_text("LLM_BACKEND_PORT=7001\nLLM_BACKEND_HOST=\n")
    assert read_environment(env_file).host is None
    monkeypatch.setenv("LLM_BACKEND_PORT", "")
    assert read_environment(env_file).port is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("LLM_BACKEND_PORT", "seventy", "valid integer.*'seventy'"),
        ("LLM_BACKEND_PORT", "70000", "less than 65536.*'70000'"),
        ("LLM_BACKEND_PROFILE", "rtx", "'rtx5080'.*'rtx'"),
        ("GPU_MEMORY_UTILIZATION", "0.99", "less than 0.95.*'0.99'"),
        ("GPU_MEMORY_UTILIZATION", "85", "less than 0.95.*'85'"),
    ],
)
def test_wrong_value_is_told_with_where_it_stands(env_file, monkeypatch, name, value, told):
    env_file.write_text(f"{name}={value}\n")
    with pytest.raises(SettingsError, match=f"{re.escape(str(env_file))}: {name}: .*{told}"):
        read_environment(env_file)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"the environment: {name}: .*{told}"):
        read_environment(env_file)


def test_misspelt_variable_of_ours_is_refused_with_the_valid_ones(env_file):
    env_file.write_text("LLM_BACKEND_APIKEY=x\n")
    with pytest.raises(SettingsError, match=r"LLM_BACKEND_APIKEY: unknown.*LLM_BACKEND_API_KEY"):
        read_environment(env_file)


def test_file_that_is_no_text_is_told(env_file):
    env_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_environment(env_file)


def test_exported_file_does_not_replace_the_environment(env_file, monkeypatch):
    env_file.write_text("HF_HOME=/from/file\nCUDA_VISIBLE_DEVICES=1\n")
    monkeypatch.setenv("HF_HOME", "/from/environment")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "x")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # so that it is gone again after the test
    export_file(env_file)
    assert os.environ["HF_HOME"] == "/from/environment"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_no_engine_inherits_a_secret(monkeypatch):
    secrets = {
        str(field.alias)
        for field in Environment.model_fields.values()
        if "Secret" in str(field.annotation)
    }
    assert len(secrets) == 3
    for name in [*secrets, "HF_HOME"]:
        monkeypatch.setenv(name, "sesame")
    assert {k for k, v in base_environment().items() if v == "sesame"} == {"HF_HOME"}


def test_example_names_every_variable_and_sets_none():
    text = (PROJECT / ".env.example").read_text()
    named = set(re.findall(r"^([A-Z_]+)=$", text, re.MULTILINE))
    known = {str(field.alias) for field in Environment.model_fields.values()}
    assert named == known | {"HF_HOME"}
    assert len(re.findall(r"^[A-Z_]+=", text, re.MULTILINE)) == len(named)
    assert read_environment(PROJECT / ".env.example") == read_environment(Path("/nonexistent"))
