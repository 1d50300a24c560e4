"""Weights that are missing, cut or something else are found before anything is drained."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest

from deployments.checkpoints.checkpoint import CheckpointError, check, locate
from tests.specs import tiny

HEADER = {"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
NOT_SAFETENSORS = "model.safetensors is not a safetensors file"


def safetensors(header: object = HEADER, num_data_bytes: int = 16) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_data_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint in one file."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    return tmp_path


def problem_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(tiny(str(folder)), folder)
    assert caught.value.problem.code == "checkpoint_broken"
    assert str(folder) not in caught.value.problem.message  # it is shown to clients
    return caught.value.problem.message


def write_shards(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(safetensors())
    weight_map = {"one": "shard-1.safetensors", "two": "shard-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_whole_checkpoint_passes(folder):
    assert check(tiny(str(folder)), folder) == folder


def test_metadata_in_the_header_is_no_tensor(folder):
    header = {"__metadata__": {"format": "pt"}, **HEADER}
    (folder / "model.safetensors").write_bytes(safetensors(header))
    check(tiny(str(folder)), folder)


def test_whole_shards_pass(folder):
    write_shards(folder, "shard-1.safetensors", "shard-2.safetensors")
    check(tiny(str(folder)), folder)


def test_missing_shard_is_named(folder):
    write_shards(folder, "shard-1.safetensors")
    assert "shard-2.safetensors is missing" in problem_of(folder)


@pytest.mark.parametrize("num_data_bytes", [0, 15, 17])
def test_cut_or_grown_file_is_refused_with_both_sizes(folder, num_data_bytes):
    path = folder / "model.safetensors"
    path.write_bytes(safetensors(num_data_bytes=num_data_bytes))
    whole = len(safetensors())
    assert f"has {path.stat().st_size} bytes and should have {whole}" in problem_of(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
        struct.pack("<Q", 100) + b"{}",
        b"version https://git-lfs.github.com/spec/v1\n",
        safetensors([]),
        safetensors("text"),
        safetensors({}),
        safetensors({"weight": 5}),
        safetensors({"weight": {}}),
        safetensors({"weight": {"data_offsets": []}}),
        safetensors({"weight": {"data_offsets": [0, "16"]}}),
    ],
)
def test_other_content_is_refused_as_no_safetensors_file(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert NOT_SAFETENSORS in problem_of(folder)


@pytest.mark.parametrize("exponent", [30, 33, 60, 63])
def test_lie_about_the_header_length_allocates_nothing(folder, exponent):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**exponent) + b"{}")
    tracemalloc.start()
    try:
        assert NOT_SAFETENSORS in problem_of(folder)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": []}}'],
)
def test_bad_index_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    assert "the index of its weights" in problem_of(folder)


def test_config_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_bytes(b"\xff")
    assert "config.json is not JSON" in problem_of(folder)


def test_missing_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in problem_of(folder)


def test_older_tokenizer_files_are_enough(folder):
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    check(tiny(str(folder)), folder)


@pytest.mark.parametrize(
    ("checkpoint", "remedy"),
    [
        ("demo/tiny", "make models"),
        ("/nowhere/at/all", "correct its path"),
        ("Nobody/has-this-model", "llm-backend pull tiny"),
    ],
)
def test_missing_weights_come_with_the_remedy(tmp_path, monkeypatch, checkpoint, remedy):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        locate(tiny(checkpoint), tmp_path)
    assert caught.value.problem.code == "checkpoint_missing"
    assert remedy in caught.value.problem.message


def test_demo_checkpoints_lie_in_the_servers_home(tmp_path):
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert locate(tiny("demo/tiny"), tmp_path) == folder
