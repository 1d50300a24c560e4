"""What the disks of a machine lack."""

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from deployments.host import disk_needs

WINDOWS = "99 75 0:52 / {} rw - 9p C:\\134 rw,aname=drvfs\n"


def free(monkeypatch: pytest.MonkeyPatch, num_gb: float) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        disk_needs.shutil, "disk_usage", lambda path: usage._replace(free=int(num_gb * 1e9))
    )


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with all folders on one disk."""
    monkeypatch.setattr(disk_needs.tempfile, "gettempdir", lambda: str(tmp_path))
    return {"XDG_CACHE_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("free_gb", "walls"), [(10, [True]), (18, [True]), (22, [False]), (26, [])]
)
def test_room_is_for_the_packages_and_the_first_model(
    tmp_path: Path,
    disk: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    free_gb: float,
    walls: list[bool],
) -> None:
    """Too little for the packages is a wall, and for the model a note."""
    free(monkeypatch, free_gb)
    found = list(disk_needs.install_needs("gpu", tmp_path / "project" / ".venv", disk))
    assert [need.is_wall for need in found] == walls
    assert all(f"{free_gb:.1f} GB free" in need.text for need in found)


def test_model_that_is_there_takes_no_room(
    tmp_path: Path, disk: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 22)
    (tmp_path / "huggingface" / "hub" / "models--Qwen--any").mkdir(parents=True)
    assert list(disk_needs.install_needs("gpu", tmp_path / ".venv", disk)) == []


def test_packages_for_the_cpu_take_less(
    tmp_path: Path, disk: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 8)
    assert list(disk_needs.install_needs("cpu", tmp_path / ".venv", disk)) == []
    free(monkeypatch, 5)
    assert [need.is_wall for need in disk_needs.install_needs("cpu", tmp_path / ".venv", disk)] == [
        True
    ]


def test_checkpoints_are_where_the_hubs_library_has_them(tmp_path: Path) -> None:
    assert disk_needs.hub_cache({}) == Path.home() / ".cache/huggingface/hub"
    assert disk_needs.hub_cache({"HF_HOME": "/a"}) == Path("/a/hub")
    assert disk_needs.hub_cache({"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}) == Path("/b")
    assert disk_needs.hub_cache(os.environ) == Path(constants.HF_HUB_CACHE)


def test_home_on_a_disk_of_windows_is_a_wall_and_checkpoints_there_are_a_note(
    tmp_path: Path,
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(WINDOWS.format(tmp_path / "c"))
    [home] = disk_needs.home_needs(tmp_path / "c" / "home", mounts)
    assert home.is_wall
    assert "LLM_BACKEND_HOME=~/.cache/llm-backend" in home.remedy
    assert list(disk_needs.home_needs(tmp_path / "home", mounts)) == []
    environ = {"HF_HOME": str(tmp_path / "c" / "hf")}
    found = list(disk_needs.slow_places(tmp_path / "c" / ".venv", environ, mounts))
    assert [need.is_wall for need in found] == [False, False]
    assert f"llm-backend pull --from {tmp_path / 'c' / 'hf' / 'hub'}" in found[0].remedy
    assert list(disk_needs.slow_places(tmp_path / ".venv", {"HF_HOME": "/x"}, mounts)) == []
