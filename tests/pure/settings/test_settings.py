"""What is shipped loads, and what is wrong is told with file, key and choices."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from deployments.settings import PROJECT, AppArgs, SettingsError, default_home, load_settings
from deployments.settings.models import left_out

CONFIGS = PROJECT / "configs"
MODELS = ["qwen-14b", "qwen-coder", "qwen-vl"]
SHIPPED = [*sorted(CONFIGS.rglob("*.yaml")), PROJECT / "serve_config.yaml"]

PLAIN_KEYS = {"name", "description", "route_prefix", "import_path"}  # they say it themselves


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A copy of the shipped files to break."""
    return shutil.copytree(CONFIGS, tmp_path / "configs")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def error_of(configs: Path, profile: str = "cpu-demo") -> str:
    args = AppArgs.model_validate({"config_dir": str(configs), "profile": profile})
    with pytest.raises(SettingsError) as caught:
        load_settings(args, has_gpu=False)
    return str(caught.value)


# --- what is shipped ---


@pytest.mark.parametrize(("profile", "device"), [("rtx5080", "cuda"), ("cpu-demo", "cpu")])
def test_shipped_settings_load_in_both_profiles(profile, device):
    settings = load_settings(AppArgs(profile=profile), has_gpu=False)
    assert sorted(settings.models) == MODELS
    assert settings.default_model in MODELS
    assert settings.device == device
    assert settings.place.amount > 0.5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_first_use_of_every_shipped_key_has_a_comment_above_it(path):
    """A comment above the first of neighbouring lines speaks for all of them, also within a block.

    A key met before in the file was explained there.
    """
    seen: set[str] = set()
    is_explained = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            is_explained = False
        elif line.lstrip().startswith("#"):
            is_explained = True
        else:
            found = re.match(r"\s*(?:- )?([\w-]+|\"[^\"]+\"):(.*)$", line)
            is_group = found is not None and not found[2].strip()
            if found and not is_group and found[1] not in seen | PLAIN_KEYS:
                assert is_explained, f"{path.name}:{number}: {line.strip()} has no comment"
                seen.add(found[1])


def test_served_application_takes_the_shipped_args():
    config = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    for application in config["applications"]:
        AppArgs.model_validate(application["args"])


# --- precedence ---


@pytest.mark.parametrize(("has_gpu", "profile"), [(True, "rtx5080"), (False, "cpu-demo")])
def test_profile_auto_follows_the_machine(has_gpu, profile):
    assert load_settings(AppArgs(), has_gpu).profile == profile


def test_named_profile_beats_the_machine():
    assert load_settings(AppArgs(profile="cpu-demo"), has_gpu=True).profile == "cpu-demo"


def test_args_beat_the_profile_for_the_default_model():
    assert load_settings(AppArgs(), has_gpu=False).default_model == "qwen-14b"
    args = AppArgs(default_model="qwen-vl")
    assert load_settings(args, has_gpu=False).default_model == "qwen-vl"


def test_default_model_none_starts_empty():
    assert load_settings(AppArgs(default_model="none"), has_gpu=False).default_model is None


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_environment_beats_the_file_beats_the_args_for_home(monkeypatch, env_file):
    def home(**args: str) -> str:
        return str(load_settings(AppArgs(env_file=str(env_file), **args), has_gpu=False).home)

    assert home() == str(Path.home() / ".cache" / "llm-backend") == str(default_home())
    assert home(home="/from/args") == "/from/args"
    env_file.write_text("LLM_BACKEND_HOME=/from/file\n")
    assert home(home="/from/args") == "/from/file"
    monkeypatch.setenv("LLM_BACKEND_HOME", "/from/environment")
    assert home(home="/from/args") == "/from/environment" == str(default_home())


def test_environment_beats_the_args_for_the_profile(monkeypatch):
    monkeypatch.setenv("LLM_BACKEND_PROFILE", "rtx5080")
    assert load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).profile == "rtx5080"
    monkeypatch.setenv("LLM_BACKEND_PROFILE", "auto")
    assert load_settings(AppArgs(profile="rtx5080"), has_gpu=False).profile == "cpu-demo"
    named = load_settings(AppArgs(), has_gpu=False, profile="rtx5080")
    assert named.profile == "rtx5080"


def test_share_of_the_card_replaces_every_models_on_a_gpu_only(monkeypatch, env_file):
    env_file.write_text("GPU_MEMORY_UTILIZATION=0.8\n")
    for profile, expected in (("rtx5080", 0.8), ("cpu-demo", None)):
        args = AppArgs(profile=profile, env_file=str(env_file))
        models = load_settings(args, has_gpu=False).models.values()
        assert {spec.engine.gpu_memory_utilization for spec in models} == {expected}
    monkeypatch.setenv("GPU_MEMORY_UTILIZATION", "0.7")
    models = load_settings(AppArgs(profile="rtx5080", env_file=str(env_file)), False).models
    assert {spec.engine.gpu_memory_utilization for spec in models.values()} == {0.7}


def test_wrong_variable_is_a_settings_error(monkeypatch):
    monkeypatch.setenv("GPU_MEMORY_UTILIZATION", "lots")
    with pytest.raises(SettingsError, match=r"environment: GPU_MEMORY_UTILIZATION: .*'lots'"):
        load_settings(AppArgs(), has_gpu=False)


def test_keys_never_print(monkeypatch):
    """Not the settings', nor those of any part of them, as text or as JSON."""
    monkeypatch.setenv("LLM_BACKEND_API_KEY", "sesame-1, sesame-2")
    monkeypatch.setenv("LLM_BACKEND_ADMIN_KEY", "sesame-3")
    monkeypatch.setenv("LLM_BACKEND_CACHE_URL", "redis://:sesame-4@cache")
    settings = load_settings(AppArgs(), has_gpu=False)
    assert [key.get_secret_value() for key in settings.api_keys] == ["sesame-1", "sesame-2"]
    assert [key.get_secret_value() for key in settings.admin_keys] == ["sesame-3"]
    for text in (str(settings), repr(settings), settings.model_dump_json(), f"{settings}"):
        assert "sesame" not in text


def test_profiles_share_limits_and_switching():
    one, other = (load_settings(AppArgs(), has_gpu) for has_gpu in (True, False))
    assert (one.limits, one.switching) == (other.limits, other.switching)
    assert one.models["qwen-14b"].checkpoint != other.models["qwen-14b"].checkpoint


# --- what is wrong ---


def test_unknown_key_is_named_with_its_file_and_the_valid_ones(configs):
    change(configs / "backend.yaml", "max_queued:", "max_qeued:")
    message = error_of(configs)
    assert "backend.yaml: limits." in message
    assert re.search(r"max_qeued: unknown key; valid here: .*max_queued", message) or (
        "max_queued: missing" in message
    )


def test_unknown_key_deep_in_a_model_is_named_with_the_valid_ones(configs):
    path = configs / "models" / "qwen-vl.yaml"
    change(path, "      max_images: 2", "      max_image: 2")
    message = error_of(configs)
    assert f"{path}: profiles.rtx5080.engine.max_image: unknown key" in message
    assert "max_images" in message
    assert "default_model" not in message


def test_added_unknown_key_lists_the_valid_ones(configs):
    with (configs / "profiles" / "cpu-demo.yaml").open("a") as file:
        file.write("\nfoo: 1\n")
    message = error_of(configs)
    assert "cpu-demo.yaml: foo: unknown key; valid here: default_model" in message


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("backend.yaml", "max_queued: 256", "max_queued: -1", ["limits.max_queued", "-1"]),
        ("backend.yaml", "max_queued: 256", "max_queued: lots", ["limits.max_queued", "lots"]),
        ("backend.yaml", "max_queued: 256", "max_queued:", ["limits.max_queued", "None"]),
        ("profiles/cpu-demo.yaml", "amount: 0.85", "amount: 0.5", ["place.amount", "0.5"]),
        ("profiles/cpu-demo.yaml", "default_model: qwen-14b", "", ["default_model: missing"]),
        (
            "profiles/cpu-demo.yaml",
            "default_model: qwen-14b",
            "default_model: gpt",
            ["gpt", *MODELS],
        ),
        ("models/qwen-14b.yaml", "name: qwen-14b", "name: other", ["name", "other"]),
        *(
            (
                "models/qwen-14b.yaml",
                f"{key}: {number}",
                f"{key}: {text}",
                [f"profiles.rtx5080.engine.{key}: ", repr(text), "32768", "write the number out"],
            )
            for key, number in (("max_model_len", 32768), ("max_num_batched_tokens", 1024))
            for text in ("32k", "32K", "32 K")
        ),
        (
            "models/qwen-14b.yaml",
            "attention_backend: TRITON_ATTN",
            "attention_backend: FLASH_ATTN",
            ["qwen-14b.yaml: profiles.rtx5080.engine: ", "no fp8 KV cache", "TRITON_ATTN"],
        ),
        (
            "models/qwen-14b.yaml",
            "max_num_batched_tokens: 1024",
            "max_num_batched_tokens: 2",
            ["profiles.rtx5080.engine: max_num_batched_tokens (2)", "max_num_seqs (4)"],
        ),
        (
            "models/qwen-coder.yaml",
            "      max_num_seqs: 8",
            "      max_num_seqs: 8\n      max_images: 2",
            ["qwen-coder.yaml: profiles.rtx5080.engine.max_images", "takes images (vision: true)"],
        ),
        (
            "models/qwen-vl.yaml",
            "vision: true",
            "vision: false",
            ["profiles.rtx5080.engine.max_images", "takes images"],
        ),
        (
            "models/qwen-vl.yaml",
            "      max_images: 2\n      max_pixels: 1003520\n",
            "",
            ["profiles.rtx5080.golden.image needs", "max_images"],
        ),
        (
            "models/qwen-14b.yaml",
            "      max_num_seqs: 10",
            "      max_num_seqs: 10\n      kv_cache_dtype: fp8",
            ["profiles.cpu-demo.engine.kv_cache_dtype does nothing without a GPU"],
        ),
        (
            "models/qwen-14b.yaml",
            'VLLM_USE_FLASHINFER_SAMPLER: "0"',
            'VLLM_CPU_KVCACHE_SPACE: "1"',
            ["profiles.rtx5080.env.VLLM_CPU_KVCACHE_SPACE does nothing on a GPU"],
        ),
        ("models/qwen-14b.yaml", "  cpu-demo:", "  cpu:", ["profiles.cpu", "'cpu-demo'"]),
        ("backend.yaml", "limits:", "limits: [", ["backend.yaml", "not YAML"]),
    ],
)
def test_wrong_value_is_told_with_file_key_and_choices(configs, file, old, new, told):
    change(configs / file, old, new)
    message = error_of(configs)
    for part in told:
        assert part in message
    assert "Value error" not in message


@pytest.mark.parametrize("content", ["", "just text", "- a\n- list"])
def test_file_that_is_no_mapping_is_told(configs, content):
    (configs / "backend.yaml").write_text(content)
    assert "backend.yaml" in error_of(configs)


def test_file_that_is_no_text_is_told(configs):
    (configs / "backend.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "backend.yaml" in error_of(configs)


def test_key_written_twice_is_told_not_dropped(configs):
    change(configs / "backend.yaml", "  max_queued: 256", "  max_queued: 256\n  max_queued: 1")
    message = error_of(configs)
    assert "backend.yaml" in message
    assert "max_queued" in message


def test_missing_file_is_told(configs):
    (configs / "backend.yaml").unlink()
    assert "backend.yaml: No such file" in error_of(configs)


def test_folder_without_models_is_told(configs):
    shutil.rmtree(configs / "models")
    assert "no model files" in error_of(configs)


def test_model_without_a_block_for_the_profile_is_left_out(configs):
    """It is not for this kind of machine."""
    path = configs / "models" / "qwen-vl.yaml"
    raw = yaml.safe_load(path.read_text())
    del raw["profiles"]["cpu-demo"]
    path.write_text(yaml.safe_dump(raw))
    args = AppArgs(config_dir=str(configs), profile="cpu-demo")
    assert sorted(load_settings(args, has_gpu=False).models) == ["qwen-14b", "qwen-coder"]
    assert left_out(configs / "models", "cpu-demo") == ["qwen-vl"]
    assert left_out(configs / "models", "rtx5080") == []


def test_profile_that_no_model_is_for_is_told(configs):
    for path in (configs / "models").glob("*.yaml"):
        raw = yaml.safe_load(path.read_text())
        del raw["profiles"]["cpu-demo"]
        path.write_text(yaml.safe_dump(raw))
    assert "no model file has a block for the profile 'cpu-demo'" in error_of(configs)


def test_unknown_arg_is_refused():
    with pytest.raises(ValidationError, match="profil"):
        AppArgs.model_validate({"profil": "auto"})


def test_settings_do_not_change_after_the_start():
    settings = load_settings(AppArgs(), has_gpu=False)
    with pytest.raises(ValidationError, match="frozen"):
        settings.limits.max_queued = 1


def test_idle_time_of_an_unknown_model_is_refused(configs):
    change(configs / "backend.yaml", "idle_unload_s: {}", "idle_unload_s: {qwen-v: 60}")
    assert "switching.idle_unload_s: no model named 'qwen-v'; there are qwen-14b" in error_of(
        configs
    )


def test_turns_longer_than_the_promised_wait_are_refused(configs):
    change(configs / "backend.yaml", "min_resident_s: 10", "min_resident_s: 60")
    assert "switching.max_wait_s: should be more than 180" in error_of(configs)


def test_each_task_of_a_model_is_a_target_of_its_own():
    settings = load_settings(AppArgs(profile="cpu-demo"), has_gpu=False)
    assert sorted(settings.targets) == sorted([*MODELS, "qwen-vl:embed"])
    assert settings.targets["qwen-vl"].task == "generate"
    embedding = settings.targets["qwen-vl:embed"]
    assert (embedding.name, embedding.task) == ("qwen-vl", "embed")
    assert embedding.target == "qwen-vl:embed"


def test_two_models_can_not_have_one_port(configs):
    change(configs / "models" / "qwen-vl.yaml", "port: 8000", "port: 8001")
    assert "qwen-vl.yaml: port: 8001 is qwen-14b's already" in error_of(configs)
