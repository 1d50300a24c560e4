"""Whether engines are forked on this machine."""

import pytest

from deployments.engine import standby
from deployments.settings import AppArgs, Settings, load_settings


def settings_of(profile: str, home) -> Settings:
    return load_settings(AppArgs(profile=profile, home=str(home)), has_gpu=False)


def test_gpu_profile_forks_where_it_is_safe(tmp_path, monkeypatch):
    assert standby.may_fork(settings_of("rtx5080", tmp_path))
    monkeypatch.setattr(standby, "is_wsl", lambda: True)
    assert not standby.may_fork(settings_of("rtx5080", tmp_path))
    assert "WSL2" in standby.why_not(tmp_path)
    assert standby.may_fork(settings_of("cpu-demo", tmp_path))


def test_failed_fork_is_remembered_for_the_versions_that_it_happened_with(tmp_path, monkeypatch):
    standby.forking_failed(tmp_path, "CUDA error: initialization error")
    assert not standby.may_fork(settings_of("rtx5080", tmp_path))
    assert "CUDA error: initialization error" in standby.why_not(tmp_path)
    monkeypatch.setattr(standby, "versions", lambda: {"vllm": "0.33.0"})
    assert standby.may_fork(settings_of("rtx5080", tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"versions": 1}'])
def test_damaged_memory_of_a_failure_is_none(tmp_path, content):
    (tmp_path / "fork_failed.json").write_text(content)
    assert standby.why_not(tmp_path) is None
