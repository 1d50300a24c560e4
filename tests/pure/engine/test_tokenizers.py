"""When the standby reads a tokenizer, and when it has to end."""

import os
from pathlib import Path

import pytest

from deployments.engine import main as engine_main
from deployments.engine.tokenizers import TokenizerCache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was read with vLLM, in order."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(engine_main, "load_tokenizer", lambda *asked: seen.append(asked))
    return seen


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    return tmp_path


def test_each_checkpoint_is_read_once(checkpoint: Path, reads: list[tuple[str, str]]) -> None:
    tokenizers = TokenizerCache()
    assert tokenizers.load(str(checkpoint), "generate")
    assert tokenizers.load(str(checkpoint), "generate")
    assert tokenizers.load(str(checkpoint), "pooling")
    assert reads == [(str(checkpoint), "generate"), (str(checkpoint), "pooling")]


def test_a_replaced_file_is_seen(checkpoint: Path, reads: list[tuple[str, str]]) -> None:
    tokenizers = TokenizerCache()
    tokenizers.load(str(checkpoint), "generate")
    (checkpoint / "new.json").write_text("{} ")
    os.replace(checkpoint / "new.json", checkpoint / "tokenizer.json")
    assert not tokenizers.load(str(checkpoint), "generate")
    assert not tokenizers.load(str(checkpoint), "pooling")  # the processor is one for both


def test_new_weights_are_no_matter(checkpoint: Path, reads: list[tuple[str, str]]) -> None:
    tokenizers = TokenizerCache()
    tokenizers.load(str(checkpoint), "generate")
    (checkpoint / "model.safetensors").write_text("other weights")
    assert tokenizers.load(str(checkpoint), "generate")


def test_a_tokenizer_that_can_not_be_read_is_left_to_the_engine(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not tried again: the engine says what is wrong."""

    def fail(*_: str) -> None:
        raise ValueError("no such tokenizer")

    monkeypatch.setattr(engine_main, "load_tokenizer", fail)
    assert TokenizerCache().load(str(checkpoint), "generate")
    assert "no such tokenizer" in caplog.text


def test_a_folder_that_is_not_there_is_left_to_the_engine(
    tmp_path: Path, reads: list[tuple[str, str]]
) -> None:
    assert TokenizerCache().load(str(tmp_path / "none"), "generate")
