"""What is never loaded: a checkpoint's own code, pickles, links out of its folder."""

import json
from pathlib import Path

import pytest

from deployments.checkpoints.checkpoint import CheckpointError, check, locate
from deployments.checkpoints.manifest import size_text
from deployments.checkpoints.safety import danger_in_config, danger_in_folder, danger_in_names
from tests.pure.checkpoints.test_checkpoint import safetensors
from tests.specs import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, beside other files."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"auto_map": {}}')  # names nothing
    (folder / "tokenizer.json").write_text('{"auto_map": "a word of the vocabulary"}')
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def refusal_of(folder: Path) -> str:
    """Both at a switch, which checks, and at a start of the engine, which locates."""
    messages = set()
    for ask in (check, locate):
        with pytest.raises(CheckpointError) as caught:
            ask(tiny(str(folder)), folder)
        assert caught.value.problem.code == "checkpoint_unsafe"
        messages.add(caught.value.problem.message)
    [message] = messages
    assert str(folder) not in message  # it is shown to clients
    return message


def test_safe_checkpoint_passes(folder):
    assert check(tiny(str(folder)), folder) == folder


def test_folder_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    check(tiny(str(tmp_path / "link")), folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "x/config.json"])
def test_remote_code_is_refused_at_switch_and_at_start(folder, name):
    (folder / "x").mkdir()
    deep = {"text_config": [{"auto_map": {"AutoModel": "modeling_x.X"}}]}
    (folder / name).write_text(json.dumps(deep))
    assert f"{name} asks for code" in refusal_of(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a.pt", "a.pth", "x/args.PKL", "a.pickle", "a.ckpt"]
)
def test_pickles_are_refused_at_switch_and_at_start(folder, name):
    (folder / "x").mkdir()
    (folder / name).write_bytes(b"")
    assert f"{name} is a pickle" in refusal_of(folder)


@pytest.mark.parametrize("target", ["../secret.json", "/etc/passwd", "../nothing"])
def test_links_out_of_the_folder_are_refused_at_switch_and_at_start(folder, tmp_path, target):
    """Also one that leads nowhere yet."""
    (tmp_path / "secret.json").write_text("{}")
    (folder / "vocab.json").symlink_to(target)
    assert "vocab.json is a link out of its folder" in refusal_of(folder)


def test_linked_folder_out_of_the_root_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "sub").symlink_to(tmp_path / "other")
    assert "sub is a link out" in refusal_of(folder)


def test_link_within_the_folder_passes(folder):
    (folder / "vocab.json").symlink_to("tokenizer.json")
    check(tiny(str(folder)), folder)


def test_second_root_allows_what_a_hubs_cache_links_to(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_text("{}")
    (folder / "vocab.json").symlink_to("../blobs/1")
    assert danger_in_folder(folder, [folder]) is not None
    assert danger_in_folder(folder, [folder, tmp_path]) is None


@pytest.mark.parametrize("name", ["../a.json", "/a.json", "x/../../a.json"])
def test_names_that_lead_out_are_refused(name):
    assert "leads out" in (danger_in_names([name]) or "")


def test_names_of_a_plain_checkpoint_pass():
    assert danger_in_names(["config.json", "x/model.safetensors", "a.b/merges.txt"]) is None


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"3", b'{"auto_map": null}'])
def test_config_without_code_passes(text):
    assert danger_in_config("config.json", text) is None


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 KB"),
        (25_000_000, "25 MB"),
        (9_980_000_000, "9.98 GB"),
    ],
)
def test_sizes_read_as_the_hub_writes_them(num_bytes, text):
    assert size_text(num_bytes) == text
