"""Engine settings that only vLLM knows are checked by the installed vLLM, before a start."""

import shutil
import time
from pathlib import Path

import pytest
import yaml

from deployments.engine.args import engine_flags
from deployments.engine.flag_check import ask_vllm, check_flags
from deployments.settings import PROJECT, AppArgs, Settings, SettingsError, load_settings

pytestmark = pytest.mark.timeout(300)


def settings_with(folder: Path, **changes: object) -> Settings:
    configs = shutil.copytree(PROJECT / "configs", folder / "configs")
    path = configs / "models" / "qwen-coder.yaml"
    model = yaml.safe_load(path.read_text())
    model["profiles"]["cpu-demo"]["engine"] |= changes
    path.write_text(yaml.safe_dump(model))
    args = AppArgs(profile="cpu-demo", config_dir=str(configs), home=str(folder))
    return load_settings(args, has_gpu=False)


def test_shipped_settings_need_no_check(tmp_path):
    """It would cost each first start some ten seconds."""
    check_flags(load_settings(AppArgs(profile="cpu-demo", home=str(tmp_path)), has_gpu=False))
    assert not list(tmp_path.iterdir())


def test_right_settings_are_checked_once(tmp_path):
    settings = settings_with(
        tmp_path,
        tool_call_parser="qwen3_coder",
        reasoning_parser="qwen3",
        engine_args={"seed": 7, "hf_overrides": {"rope_theta": 10000.0}},
    )
    check_flags(settings)
    began = time.monotonic()
    check_flags(settings)  # from the file that the first one wrote
    assert time.monotonic() - began < 3


WRONG = {
    "tool-parser": ({"tool_call_parser": "qwen9"}, "tool_call_parser: 'qwen9' is none of "),
    "reasoning-parser": ({"reasoning_parser": "qwen9"}, "reasoning_parser: 'qwen9' is none of "),
    "unknown": ({"engine_args": {"no_such_flag": 1}}, "arguments: --no-such-flag=1"),
    "kind": ({"engine_args": {"seed": "seven"}}, "argument --seed: invalid int value: 'seven'"),
    "right": ({"engine_args": {"seed": 7}}, None),
}


def test_wrong_settings_are_told_with_the_choices(tmp_path):
    """All in one process, as its imports take seconds."""
    flags = {}
    for name, (changes, _) in WRONG.items():
        settings = settings_with(tmp_path / name, **changes)
        flags[name] = engine_flags(settings.models["qwen-coder"], Path("/c"), "cpu")
    problems = ask_vllm(flags)
    for name, (_, told) in WRONG.items():
        assert problems[name] is None if told is None else told in problems[name], name
    assert "hermes" in problems["tool-parser"]
    assert "deepseek_r1" in problems["reasoning-parser"]


def test_wrong_setting_is_refused_with_its_file(tmp_path):
    settings = settings_with(tmp_path, engine_args={"no_such_flag": 1})
    with pytest.raises(
        SettingsError, match=r"qwen-coder\.yaml: engine: vLLM refuses it: .*no-such"
    ):
        check_flags(settings)
