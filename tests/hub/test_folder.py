"""`llm-backend pull --from`: a checkpoint is copied from a folder, with its hashes and without a
network."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants

from deployments.checkpoints import checkpoint
from deployments.checkpoints.folder import FolderHub
from deployments.checkpoints.hub import PullError
from deployments.checkpoints.manifest import load_manifest
from deployments.checkpoints.pull import pull
from tests.hub.fake_hub import FakeHub, digest_of
from tests.hub.test_pull import NEW, OLD, SHARD, _command, check, model_files, spec
from tests.hub.test_pull import fake as fake
from tests.hub.test_pull import puller as puller

pytestmark = pytest.mark.timeout(60)

SERVED = {name: c for name, c in model_files().items() if name != "README.md"}
NAME = "models--Org--tiny-model"


def hf_cache(folder: Path, *, is_windows: bool = False, commit: str = OLD) -> Path:
    """A cache as huggingface_hub makes it; on Windows without links, so without hashes."""
    repo = folder / NAME
    for name, content in model_files().items():
        path = repo / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_windows:
            path.write_bytes(content)
        else:
            blob = repo / "blobs" / digest_of(name, content)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(content)
            path.symlink_to(Path("../../blobs") / blob.name)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    return folder


def plain(folder: Path) -> Path:
    folder.mkdir()
    for name, content in model_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's; what asks the network fails."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def copy(source: Path, revision: str | None = None) -> Path:
    hub = FolderHub(source, spec(revision))
    return pull(hub, spec(revision), lambda line: None, is_update=True)


@pytest.mark.parametrize("below", ["", "hub", f"hub/{NAME}"])
def test_copy_of_a_cache_is_what_serving_finds(tmp_path: Path, below: str) -> None:
    """Whether HF_HOME is named, the cache in it, or the repository's own folder."""
    source = hf_cache(tmp_path / "source" / "hub")
    folder = copy(source.parent / below)
    assert check() == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == SERVED
    manifest = load_manifest(folder)
    assert manifest is not None
    assert manifest.commit == OLD
    assert {f.path: f.digest for f in manifest.files} == {
        n: digest_of(n, c) for n, c in SERVED.items()
    }


def test_copy_needs_nothing_of_the_source_afterwards(tmp_path: Path) -> None:
    source = hf_cache(tmp_path / "source")
    folder = copy(source)
    shutil.rmtree(source)
    assert (folder / SHARD).read_bytes() == SERVED[SHARD]
    assert check() == folder


def test_file_that_is_not_what_its_hash_says_is_refused(tmp_path: Path, cache: Path) -> None:
    """Same size, other content; nothing of it stays."""
    source = hf_cache(tmp_path / "source")
    blob = (source / NAME / "snapshots" / OLD / SHARD).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\2")
    with pytest.raises(PullError, match="is not the one in the folder"):
        copy(source)
    assert not (cache / NAME / "blobs" / blob.name).exists()
    assert not [path for path in cache.rglob("*") if path.name.startswith(blob.name)]


def test_copy_that_was_interrupted_goes_on(tmp_path: Path, cache: Path) -> None:
    """What is there of a file is kept, and its hash is compared as a whole."""
    digest = digest_of(SHARD, SERVED[SHARD])
    part = cache / NAME / "blobs" / f"{digest}.incomplete"
    part.parent.mkdir(parents=True)
    for begun in (SERVED[SHARD][:300], b"x" * 300):  # right, and wrong
        part.write_bytes(begun)
        assert (copy(hf_cache(tmp_path / "source")) / SHARD).read_bytes() == SERVED[SHARD]
        shutil.rmtree(cache)
        shutil.rmtree(tmp_path / "source")
        part.parent.mkdir(parents=True)


@pytest.mark.parametrize("make", [plain, lambda folder: hf_cache(folder, is_windows=True)])
def test_files_without_hashes_are_hashed_where_they_are(tmp_path: Path, make) -> None:
    folder = copy(make(tmp_path / "source"))
    assert check() == folder
    manifest = load_manifest(folder)
    assert manifest is not None
    assert {f.path: f.digest for f in manifest.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in SERVED.items()
    }
    assert copy(tmp_path / "source") == folder  # a second copy is the same revision


def test_notes_of_a_local_download_name_revision_and_hashes(tmp_path: Path) -> None:
    source = plain(tmp_path / "source")
    notes = source / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for name, content in SERVED.items():
        (notes / f"{name}.metadata").write_text(f"{NEW}\n{digest_of(name, content)}\n1.5\n")
    assert copy(source).name == NEW
    (source / SHARD).write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(PullError, match="is not the one in the folder"):
        copy(source)


def test_revision_that_the_models_file_names_must_be_there(tmp_path: Path) -> None:
    source = hf_cache(tmp_path / "source")
    assert copy(source, OLD).name == OLD
    with pytest.raises(PullError, match=f"names revision {NEW[:12]}"):
        copy(source, NEW)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source" / "models--Org--other" / "snapshots").mkdir(parents=True)
    with pytest.raises(PullError, match=f"neither {NAME}"):
        copy(tmp_path / "source")
    pickled = plain(tmp_path / "pickled")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PullError, match="is a pickle"):
        copy(pickled)


def test_pull_after_a_copy_needs_no_network(fake: FakeHub, puller, tmp_path: Path) -> None:
    """It stays at the revision that was copied, and hashes it."""
    copy(hf_cache(tmp_path / "source"))
    puller.pull()
    assert fake.requests == []
    assert "every hash is right" in puller.text
    assert checkpoint.check(spec(), Path("/nonexistent")).name == OLD


def test_command_copies_and_uses_the_folders_that_the_env_file_names(
    fake: FakeHub, tmp_path: Path
) -> None:
    """HF_HOME in `.env` counts for a pull as for a start."""
    command, environment = _command(tmp_path, fake)
    source = hf_cache(tmp_path / "source")
    config = tmp_path / "serve_config.yaml"
    (tmp_path / "env").write_text(f"HF_HOME={tmp_path / 'home'}\n")
    text = config.read_text().replace(
        "profile: rtx5080", f"profile: rtx5080\n    env_file: {tmp_path / 'env'}"
    )
    config.write_text(text)
    del environment["HF_HUB_CACHE"]
    offline = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, "--from", str(source)], env=offline, capture_output=True, text=True, timeout=40
    )
    assert done.returncode == 0, done.stderr
    assert f"to copy into {tmp_path / 'home' / 'hub'}" in done.stdout
    assert (tmp_path / "home" / "hub" / NAME / "snapshots" / OLD / SHARD).is_file()
    unnamed = [
        command[0],
        "pull",
        "--config",
        str(config),
        "--from",
        str(plain(tmp_path / "plain")),
    ]
    refused = subprocess.run(unnamed, env=offline, capture_output=True, text=True, timeout=40)
    assert refused.returncode == 2
    assert "name the model" in refused.stderr
