"""`llm-backend pull` against a hub on loopback: resume, hashes, refusals, updates."""

import inspect
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants, file_download

from deployments.checkpoints import checkpoint
from deployments.checkpoints.checkpoint import CheckpointError
from deployments.checkpoints.hub import Hub, PullError, room_needed
from deployments.checkpoints.manifest import load_manifest
from deployments.checkpoints.pull import pull
from deployments.settings import PROJECT, ModelSpec
from tests.hub.fake_hub import FakeHub, running
from tests.specs import tiny

REPO = "Org/tiny-model"
OLD, NEW = "a" * 40, "b" * 40
SHARD = "model-00002-of-00002.safetensors"
MB = 10**6

pytestmark = pytest.mark.timeout(150)


def safetensors(num_bytes: int, fill: bytes = b"\1") -> bytes:
    header = {"weight": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + fill * num_bytes


def model_files(fill: bytes = b"\1", shard_bytes: int = 1000) -> dict[str, bytes]:
    first = "model-00001-of-00002.safetensors"
    weight_map = {"one": first, "two": SHARD}
    return {
        "config.json": b'{"model_type": "qwen2"}',
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"model_max_length": 16}',
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        first: safetensors(500),
        SHARD: safetensors(shard_bytes, fill),
        "README.md": b"# A model",
    }


def spec(revision: str | None = None) -> ModelSpec:
    return tiny(REPO, revision)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one revision, and an empty cache in place of the user's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # its pause before a retry
    with running(FakeHub(REPO)) as hub:
        hub.publish(OLD, model_files())
        yield hub


class Puller:
    """Pulls from a fake hub into the test's cache; `said`: each line."""

    def __init__(self, fake: FakeHub) -> None:
        self.hub = Hub(fake.url)
        self.said: list[str] = []

    def pull(self, revision: str | None = None, is_update: bool = False) -> Path:
        self.said.clear()
        return pull(self.hub, spec(revision), self.said.append, is_update=is_update)

    def refused(self, revision: str | None = None, is_update: bool = False) -> str:
        with pytest.raises(PullError) as caught:
            self.pull(revision, is_update)
        return str(caught.value)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def puller(fake: FakeHub) -> Puller:
    return Puller(fake)


def check() -> Path:
    return checkpoint.check(spec(), Path("/nonexistent"))


# --- pulling ---


def test_pulled_checkpoint_is_what_serving_finds(fake, puller):
    """Files, sizes and hashes as listed; the manifest says which; nothing that is not served."""
    folder = puller.pull()
    assert check() == folder
    served = {name: c for name, c in model_files().items() if name != "README.md"}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == served
    manifest = load_manifest(folder)
    assert manifest is not None
    assert (manifest.repo, manifest.commit) == (REPO, OLD)
    assert {file.path: file.size_bytes for file in manifest.files} == {
        name: len(content) for name, content in served.items()
    }


def test_size_is_shown_before_the_first_download(fake, puller):
    total = sum(len(c) for name, c in model_files().items() if name != "README.md")
    asked: list[int] = []

    def say(line: str) -> None:
        asked.append(len([r for r in fake.requests if "/resolve/" in r.path]))
        puller.said.append(line)

    pull(puller.hub, spec(), say, is_update=False)
    assert asked[0] == 0
    assert f"{total / 1000:.3g} KB of {REPO}" in puller.said[0]


def test_whole_checkpoint_is_hashed_again_without_the_network(fake, puller):
    puller.pull()
    fake.requests.clear()
    puller.pull()
    assert fake.requests == []
    assert "every hash is right" in puller.text


def test_damaged_file_is_found_by_its_hash_and_brought_again(fake, puller):
    """Same size, other content: only a pull that reads it can see that."""
    folder = puller.pull()
    blob = (folder / SHARD).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\2")
    fake.requests.clear()
    puller.pull()
    assert f"{SHARD} is damaged" in puller.text
    assert (folder / SHARD).read_bytes() == model_files()[SHARD]
    assert fake.downloads("model-00001-of-00002.safetensors") == []


def test_checkpoint_that_another_tool_has_begun_is_completed(fake, puller):
    """Blobs that are in the hub's cache already are hashed, not downloaded."""
    puller.pull()
    load_path = puller.hub.snapshot(REPO, OLD)
    (load_path.parent.parent / "llm-backend" / f"{OLD}.json").unlink()
    fake.requests.clear()
    puller.pull()
    assert fake.downloads(SHARD) == []
    assert load_manifest(load_path) is not None


# --- interruptions ---


def test_connection_that_breaks_is_taken_up_where_it_broke(fake, puller, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    fake.cut_at[SHARD] = 650
    folder = puller.pull()
    assert fake.downloads(SHARD) == [0, 600]  # what is written is whole chunks
    assert (folder / SHARD).read_bytes() == model_files()[SHARD]


def test_killed_pull_goes_on_where_it_was(fake, tmp_path):
    """kill -9 in the middle of a large file: the next process asks for the rest only."""
    fake.publish(OLD, model_files(shard_bytes=25 * MB))
    fake.hold_at[SHARD] = 22 * MB
    command, environment = _command(tmp_path, fake)
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert fake.is_holding.wait(30)
        part = _wait_for_part(tmp_path / "cache", 20 * MB)
    finally:
        first.kill()
        first.communicate()
    have = part.stat().st_size
    assert 20 * MB <= have <= 22 * MB
    fake.release.set()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40)
    assert second.returncode == 0, second.stdout + second.stderr
    assert fake.downloads(SHARD) == [0, have]
    assert f"{25 - have / MB:.1f}" in second.stdout.split(" MB of")[0]  # the rest of the 25
    assert check().name == OLD


def _wait_for_part(cache: Path, num_bytes: int) -> Path:
    from tests.cluster.server import wait_until

    def found() -> Path | None:
        parts = list(cache.rglob("*.incomplete"))
        return next((p for p in parts if p.stat().st_size >= num_bytes), None)

    part: Path = wait_until(found, 20, "the part on the disk")
    return part


def _command(tmp_path: Path, fake: FakeHub) -> tuple[list[str], dict[str, str]]:
    """The command line as a user types it, for a deployment whose one model is on the fake hub."""
    configs = tmp_path / "configs"
    (configs / "models").mkdir(parents=True)
    (configs / "profiles").mkdir()
    (configs / "backend.yaml").write_text((PROJECT / "configs/backend.yaml").read_text())
    profile = yaml.safe_load((PROJECT / "configs/profiles/rtx5080.yaml").read_text())
    profile["default_model"] = "tiny"
    (configs / "profiles" / "rtx5080.yaml").write_text(yaml.safe_dump(profile))
    engine = spec().engine.model_dump(exclude_unset=True)
    block = {"checkpoint": REPO, "engine": engine, "golden": {}}
    file = {
        "port": None,
        "name": "tiny",
        "description": "",
        "tasks": ["generate"],
        "profiles": {"rtx5080": block},
    }
    (configs / "models" / "tiny.yaml").write_text(yaml.safe_dump(file))
    serve = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    serve["applications"][0]["args"] = {"profile": "rtx5080", "config_dir": str(configs)}
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(serve))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(PROJECT),
        "HF_ENDPOINT": fake.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    program = str(Path(sys.executable).with_name("llm-backend"))
    return [program, "pull", "tiny", "--config", str(tmp_path / "serve_config.yaml")], environment


def test_command_says_what_it_did_and_a_second_one_needs_no_network(fake, tmp_path):
    command, environment = _command(tmp_path, fake)
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40)
    assert first.returncode == 0, first.stderr
    assert "every hash is right" in first.stdout
    offline = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    default = [*command[:2], "--default", *command[3:]]
    for manifest in (tmp_path / "cache").rglob("llm-backend/*.json"):
        manifest.unlink()  # as where another tool has brought it
    again = subprocess.run(default, env=offline, capture_output=True, text=True, timeout=40)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"tiny: {REPO} ({OLD[:12]}) is already on this machine\n"
    update = [*command, "--update"]
    failed = subprocess.run(update, env=offline, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "cannot be reached" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_server_without_ranges_starts_the_file_again(fake, puller, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    fake.ignores_ranges = True
    fake.cut_at[SHARD] = 650
    folder = puller.pull()
    assert (folder / SHARD).read_bytes() == model_files()[SHARD]


@pytest.mark.parametrize(("num_bytes", "starts"), [(400, [400, 0]), (5000, [0])])
def test_part_with_a_fault_in_it_is_begun_again(fake, puller, num_bytes, starts):
    """What an earlier pull left may be the fault, or more than there is: not the end of it."""
    blob = puller.hub.blob(REPO, next(f for f in puller.hub.files(REPO, OLD) if f.path == SHARD))
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"x" * num_bytes)
    puller.pull()
    assert fake.downloads(SHARD) == starts
    check()


# --- refusals ---


@pytest.mark.parametrize("path", [SHARD, "tokenizer.json"])
def test_wrong_hash_is_refused_and_nothing_of_it_stays(fake, puller, path):
    """Large files by SHA-256, small ones by git's SHA-1."""
    fake.lies[path] = bytes(len(model_files()[path]))
    assert f"the hash of {path} of {REPO} is not the one in the hub's listing" in puller.refused()
    files = [p for p in puller.hub.cache.rglob("*") if p.is_file()]
    assert all(fake.lies[path] != p.read_bytes() for p in files)
    assert puller.hub.pinned(REPO, "main") is None
    with pytest.raises(CheckpointError):
        check()
    fake.lies.clear()
    puller.pull()
    check()


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("pytorch_model.bin", b"\x80\x04", "is a pickle"),
        ("old/weights.PT", b"", "is a pickle"),
        ("config.json", b'{"auto_map": {"AutoModel": "modeling_x.X"}}', "auto_map"),
        ("processor_config.json", b'{"vision": {"auto_map": {"A": "b.C"}}}', "auto_map"),
        ("../../escape.json", b"{}", "leads out of its folder"),
    ],
)
def test_unsafe_checkpoint_is_refused_before_its_weights_are_downloaded(
    fake, puller, path, content, reason
):
    fake.publish(NEW, model_files() | {path: content})
    assert reason in puller.refused()
    assert fake.downloads(SHARD) == []
    assert puller.hub.pinned(REPO, "main") is None


def test_checkpoint_without_safetensors_is_refused(fake, puller):
    fake.publish(NEW, {"config.json": b"{}", "model.gguf": b"GGUF"})
    assert "no safetensors" in puller.refused()


def test_unknown_repository_and_revision_say_so(fake, puller):
    assert "does not have the revision" in puller.refused("c" * 40)
    fake.repo = "Other/model"
    assert f"the hub has no checkpoint {REPO}" in puller.refused()


def test_disk_without_room_is_refused_before_the_download():
    told = room_needed(10**10, 9 * 10**9, Path("/cache")) or ""
    assert "needs 10.00 GB and 2.00 GB to spare, and /cache has 9.00 GB free" in told
    assert room_needed(10**9, 10**10, Path("/cache")) is None


# --- revisions ---


def test_pull_stays_at_the_revision_it_has(fake, puller):
    """What serves does not change because the hub did."""
    puller.pull()
    fake.publish(NEW, model_files(b"\2"))
    assert puller.pull().name == OLD
    assert check().name == OLD


def test_update_moves_to_the_newest_and_says_what_changed(fake, puller):
    puller.pull()
    files = model_files(b"\2") | {"chat_template.jinja": b"{{ messages }}"}
    del files["tokenizer_config.json"]
    fake.publish(NEW, files)
    assert puller.pull(is_update=True).name == NEW
    assert check().name == NEW
    assert f"{REPO}: {OLD[:12]} -> {NEW[:12]}" in puller.said
    changed = [line.strip() for line in puller.said if line.startswith("  ")][:3]
    assert changed[0].startswith("+ chat_template.jinja")
    assert changed[1].startswith(f"~ {SHARD}")
    assert changed[2] == "- tokenizer_config.json"
    assert fake.downloads("model-00001-of-00002.safetensors") == [0]  # the same: not again


def test_update_that_fails_leaves_what_serves(fake, puller):
    puller.pull()
    fake.publish(NEW, model_files(b"\2"))
    fake.lies[SHARD] = bytes(len(model_files()[SHARD]))
    puller.refused(is_update=True)
    assert check().name == OLD


def test_revision_in_the_models_file_is_what_is_pulled(fake, puller):
    """And an update of it says what to write there: the file is the user's."""
    fake.publish(NEW, model_files(b"\2"))
    assert puller.pull(OLD).name == OLD
    assert checkpoint.check(spec(OLD), Path("/nonexistent")).name == OLD
    assert puller.pull(OLD, is_update=True).name == NEW
    assert f"set there: revision: {NEW}" in puller.text


# --- what serving sees ---


def test_pulled_file_that_was_cut_is_found_without_reading_it(puller):
    """Also one that holds no weights, whose end nothing else tells."""
    folder = puller.pull()
    (folder / "tokenizer_config.json").resolve().write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        check()
    assert (
        "tokenizer_config.json is missing, or its size is not that of"
        in caught.value.problem.message
    )
    assert "llm-backend pull tiny" in caught.value.problem.message


def test_missing_shard_is_named(puller):
    folder = puller.pull()
    (folder / SHARD).unlink()
    with pytest.raises(CheckpointError) as caught:
        check()
    assert SHARD in caught.value.problem.message


def test_snapshot_with_a_link_out_of_the_cache_is_refused(puller, tmp_path):
    folder = puller.pull()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError) as caught:
        check()
    assert caught.value.problem.code == "checkpoint_unsafe"


def test_hub_library_still_has_what_the_download_leans_on():
    """`http_get` is no documented interface: a new version of the library is to be noticed here."""
    assert {"resume_size", "headers", "expected_size", "displayed_filename"} <= set(
        inspect.signature(file_download.http_get).parameters
    )
