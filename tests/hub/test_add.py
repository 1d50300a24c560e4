"""`llm-backend add` against a hub on loopback: what it guesses, writes, refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants, file_download

from deployments.checkpoints.hub import Hub, PullError
from deployments.checkpoints.remote import look
from deployments.memory.plan import CUDA_RESERVED_BYTES, GIB, RTX_5080_BYTES, Plan, Room
from deployments.memory.planner import PlanError, plan_of
from deployments.settings import PROJECT, AppArgs, Settings, load_settings
from deployments.settings.models import ModelFile
from serve_app.cli.fitting import model_file
from serve_app.cli.model_file import DraftError, name_of
from tests.hub.fake_hub import FakeHub, running
from tests.pure.checkpoints import families
from tests.specs import tiny

REPO = "Org/Some-Model-AWQ"
COMMIT = "c" * 40
CARD = Room("cuda", RTX_5080_BYTES - CUDA_RESERVED_BYTES)
WEIGHTS = "model.safetensors"

HERMES = "{% if tools %}<tool_call>{% endif %}"
THINKING = HERMES + "<think>"

pytestmark = pytest.mark.timeout(60)


class Weights(bytes):
    """A file of some GiB, of which the hub lists the size; nobody may ask for its content."""

    size: int

    def __new__(cls, size: int) -> "Weights":
        made = super().__new__(cls, b"not to be downloaded")
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and an empty cache in place of the user's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    with running(FakeHub(REPO)) as hub:
        yield hub
        assert hub.downloads(WEIGHTS) == []


def settings() -> Settings:
    return load_settings(AppArgs(profile="rtx5080"), has_gpu=False)


def publish(
    fake: FakeHub,
    config: dict[str, Any],
    *,
    template: str = HERMES,
    size_bytes: int = 6 * GIB,
    architecture: str = "QwenForCausalLM",
    **files: bytes,
) -> None:
    whole = {"architectures": [architecture], **config}
    named = {
        "config.json": json.dumps(whole).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": json.dumps({"chat_template": template}).encode(),
        WEIGHTS: Weights(size_bytes),
    }
    fake.publish(COMMIT, named | files)


def drafted(fake: FakeHub, task: Any = None, room: Room = CARD) -> tuple[ModelFile, Plan | None]:
    text, made = model_file(look(Hub(fake.url), REPO, None), "some", task, room, settings())
    return ModelFile.model_validate(yaml.safe_load(text)), made


def test_chat_model_is_drafted_with_the_context_that_fits(fake):
    publish(fake, families.QWEN3_8B | {"quantization_config": families.AWQ})
    file, made = drafted(fake)
    assert made is not None
    assert made.fits
    assert list(file.profiles) == ["rtx5080"]
    block = file.profiles["rtx5080"]
    assert (file.tasks, file.vision, file.port) == (["generate"], False, None)
    assert (block.checkpoint, block.revision) == (REPO, COMMIT)
    assert block.golden.must_contain == "Paris"
    engine = block.engine
    assert (engine.max_model_len, engine.min_model_len) == (40960, 8192)
    assert (engine.kv_cache_dtype, engine.attention_backend) == ("auto", "TRITON_ATTN")
    assert (engine.tool_call_parser, engine.reasoning_parser) == ("hermes", None)
    assert engine.max_cudagraph_capture_size == engine.max_num_seqs == 8
    assert made.weights_bytes == 6 * GIB


def test_fp8_is_taken_where_the_context_would_be_short(fake):
    publish(fake, families.QWEN3_14B, size_bytes=int(9.3 * GIB))
    file, made = drafted(fake)
    engine = file.profiles["rtx5080"].engine
    assert made is not None
    assert made.fits
    assert engine.kv_cache_dtype == "fp8"
    assert 32768 <= engine.max_model_len <= 40960
    assert engine.max_model_len % 1024 == 0
    assert not made.is_shortened


def test_model_that_does_not_fit_is_told_so(fake):
    publish(fake, families.MIXTRAL_8X7B, size_bytes=23 * GIB)
    _, made = drafted(fake)
    assert made is not None
    assert not made.fits
    assert made.reason


def test_layers_that_are_not_known_leave_a_file_without_a_plan(fake):
    publish(fake, families.LLAMA_3_1_8B | {"layer_types": ["mamba"] * 32})
    file, made = drafted(fake)
    assert made is None
    assert file.profiles["rtx5080"].engine.max_model_len == 131_072


CHATS = {
    "qwen3": (families.QWEN3_8B, THINKING, "hermes", "qwen3"),
    "qwen2.5": (families.QWEN2_5_7B, HERMES, "hermes", None),
    "qwen3-coder": (
        families.QWEN3_30B_A3B,
        "tools <tool_call><function=name>",
        "qwen3_coder",
        None,
    ),
    "r1-distill": (families.QWEN2_5_7B, "<think>", None, "deepseek_r1"),
    "llama": (families.LLAMA_3_1_8B, "tools <|python_tag|>", "llama3_json", None),
    "mistral": (families.MISTRAL_7B_V03, "tools [TOOL_CALLS]", "mistral", None),
    "gpt-oss": (
        families.GPT_OSS_20B,
        "tools <|channel|>commentary",
        "openai",
        "openai_gptoss",
    ),
    "gemma": (families.GEMMA_2_9B, "<start_of_turn>", None, None),
}


@pytest.mark.parametrize("kind", CHATS)
def test_parsers_are_those_of_the_chat_template(fake, kind):
    config, template, tools, reasoning = CHATS[kind]
    publish(fake, config, template=template)
    block = drafted(fake)[0].profiles["rtx5080"]
    assert block.engine.tool_call_parser == tools
    assert block.engine.reasoning_parser == reasoning
    assert block.golden.must_contain == (None if reasoning else "Paris")


def test_template_may_be_a_file_of_its_own(fake):
    publish(fake, families.QWEN3_8B, template="", **{"chat_template.jinja": THINKING.encode()})
    assert drafted(fake)[0].profiles["rtx5080"].engine.reasoning_parser == "qwen3"


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("Qwen3ForCausalLM", {"modules.json": b"[]"}),
        ("Qwen3ForCausalLM", {"1_Pooling/config.json": b"{}"}),
        ("Qwen2Model", {}),
    ],
)
def test_embedding_models_are_known_by_their_pooling(fake, architecture, more):
    publish(fake, families.QWEN3_0_6B, architecture=architecture, size_bytes=GIB, **more)
    file, made = drafted(fake)
    engine = file.profiles["rtx5080"].engine
    assert file.tasks == ["embed"]
    assert (engine.tool_call_parser, engine.cudagraph_mode) == (None, None)
    assert made is not None
    assert made.fits


def test_vision_model_takes_images(fake):
    publish(fake, families.GEMMA_3_12B, architecture="Gemma3ForConditionalGeneration")
    file, _ = drafted(fake)
    engine = file.profiles["rtx5080"].engine
    assert file.vision
    assert (engine.max_images, engine.max_pixels) == (2, None)
    assert engine.mm_encoder_attn_backend == "TORCH_SDPA"


def test_latent_attention_has_a_backend_of_its_own(fake):
    publish(fake, families.DEEPSEEK_V2_LITE)
    assert drafted(fake)[0].profiles["rtx5080"].engine.attention_backend is None


def test_named_task_beats_the_guess(fake):
    publish(fake, families.QWEN3_8B)
    assert drafted(fake, "embed")[0].tasks == ["embed"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "Qwen3ForSequenceClassification"}, "classifies or ranks"),
        ({"architecture": "Nothing"}, "name the task with --task"),
        ({"template": ""}, "no chat template"),
    ],
)
def test_what_cannot_be_served_is_told(fake, changes, told):
    publish(fake, families.QWEN3_8B, **changes)
    with pytest.raises(DraftError, match=told):
        drafted(fake)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"pytorch_model.bin": b"\x80\x04"}, "is a pickle"),
        ({"processor_config.json": b'{"auto_map": {"A": "b.C"}}'}, "auto_map"),
    ],
)
def test_code_and_pickles_are_refused(fake, files, told):
    publish(fake, families.QWEN3_8B, **files)
    with pytest.raises(PullError, match=told):
        drafted(fake)


def test_weights_for_other_programs_are_no_reason_to_refuse(fake):
    """gpt-oss and Llama carry them in folders of their own, which are not downloaded."""
    publish(
        fake,
        families.GPT_OSS_20B,
        size_bytes=12 * GIB,
        **{
            "metal/model.bin": b"x",
            "original/consolidated.00.pth": b"x",
            "original/model.safetensors": Weights(12 * GIB),
            "consolidated.safetensors": Weights(12 * GIB),
        },
    )
    remote = look(Hub(fake.url), REPO, None)
    assert remote.weights_bytes == 12 * GIB
    assert not [f.path for f in remote.files if "/" in f.path or "consolidated" in f.path]


def test_checkpoint_that_is_not_here_is_planned_by_the_hubs_listing(fake):
    publish(fake, families.GEMMA_3_12B, size_bytes=7 * GIB)
    made = plan_of(tiny(REPO), CARD, settings(), {}, lambda: Hub(fake.url))
    assert (made.weights_bytes, made.kv_bytes_per_token) == (7 * GIB, 65_536)
    assert made.fits


def test_hub_that_does_not_answer_leaves_the_plan_untold(fake):
    with pytest.raises(PlanError, match=r"does not know it; the hub cannot be reached"):
        plan_of(tiny(REPO), CARD, settings(), {}, lambda: Hub("http://127.0.0.1:9"))


def test_plan_without_a_hub_does_not_use_the_network(fake):
    """As of the doctor, which is also for machines without one."""
    publish(fake, families.GEMMA_3_12B)
    with pytest.raises(PlanError, match=r"does not know it$"):
        plan_of(tiny(REPO), CARD, settings(), {})
    assert fake.requests == []


def test_name_is_the_repositorys():
    assert name_of("Qwen/Qwen3-14B-AWQ") == "qwen3-14b-awq"
    assert name_of("Org/A model (4bit)") == "a-model-4bit"


# --- the command ---


@pytest.fixture
def command(fake: FakeHub, tmp_path: Path) -> Any:
    """Runs `llm-backend add` on a copy of the project's configuration."""
    configs = shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    environment = os.environ | {
        "HF_ENDPOINT": fake.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "LLM_BACKEND_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(PROJECT),
    }
    code = "from serve_app.cli import add, main; from deployments.settings import AppArgs\n"
    code += f"add.AppArgs = lambda: AppArgs(config_dir={str(configs)!r})\nmain()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, "add", REPO, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
        )

    run.models = configs / "models"  # type: ignore[attr-defined]
    return run


def test_command_writes_a_file_that_is_served_and_replaces_none(fake, command):
    publish(fake, families.QWEN3_8B)
    first = command()
    assert first.returncode == 0, first.stderr
    assert "some-model-awq fits the card" in first.stdout
    assert "llm-backend pull some-model-awq, and restart" in first.stdout
    path = command.models / "some-model-awq.yaml"
    text = path.read_text()
    args = AppArgs(config_dir=str(command.models.parent), profile="rtx5080")
    assert "some-model-awq" in load_settings(args, has_gpu=False).models
    path.write_text(mine := f"{text}# mine\n")
    second = command()
    assert (second.returncode, path.read_text()) == (2, mine)
    assert "is there already" in second.stderr
    assert command("--force").returncode == 0
    assert path.read_text() == text


def test_command_prints_and_writes_nothing(fake, command):
    publish(fake, families.QWEN3_8B)
    done = command("--print", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["name"] == "mine"
    assert "fits the card" in done.stderr
    assert not (command.models / "mine.yaml").exists()


def test_command_writes_no_file_of_a_model_that_does_not_fit(fake, command):
    publish(fake, families.MIXTRAL_8X7B, size_bytes=23 * GIB)
    done = command()
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "would help: a card with" in done.stdout
    assert not (command.models / "some-model-awq.yaml").exists()
