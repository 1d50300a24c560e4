"""What can go wrong in a switch, on real engines: the old model serves again, and the reason is
told."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from deployments.settings import PROJECT
from tests.cluster.server import Server, running, wait_until
from tests.conftest import DEMO_HOME

pytestmark = [pytest.mark.timeout(900), pytest.mark.own_server]


@dataclass
class Drill:
    """A server whose qwen-coder has weights of its own to damage, and whose qwen-vl is a text
    model that is compiled, which answers wrongly on the CPU."""

    server: Server
    coder: Path  # its checkpoint
    whole: Path  # an undamaged copy


def edit(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = tmp_path_factory.mktemp("drill")
    whole = DEMO_HOME / "models" / "smollm2-135m-instruct"
    coder = shutil.copytree(whole, folder / "coder")
    configs = shutil.copytree(PROJECT / "configs", folder / "configs")

    def own_weights(value) -> None:  # type: ignore[no-untyped-def]
        value["profiles"]["cpu-demo"]["checkpoint"] = str(coder)

    def compiled(value) -> None:  # type: ignore[no-untyped-def]
        text = yaml.safe_load((configs / "models" / "qwen-14b.yaml").read_text())
        value["vision"] = False
        profile = text["profiles"]["cpu-demo"]
        profile["engine"]["enforce_eager"] = False
        del profile["env"]["TORCH_COMPILE_DISABLE"]
        value["profiles"] = {"cpu-demo": profile}

    def quick(value) -> None:  # type: ignore[no-untyped-def]
        value["probing"] |= {"interval_s": 2, "still_after_s": 5}
        value["switching"] |= {"failed_retry_s": 1}

    edit(configs / "models" / "qwen-coder.yaml", own_weights)
    edit(configs / "models" / "qwen-vl.yaml", compiled)
    edit(configs / "backend.yaml", quick)
    with running(folder, config_dir=str(configs)) as server:
        yield Drill(server, coder, whole)


@pytest.fixture
def mended(drill: Drill) -> Iterator[Drill]:
    """The drill with qwen-14b resident, and the damage undone afterwards."""
    drill.server.switch("qwen-14b")
    yield drill
    shutil.rmtree(drill.coder)
    shutil.copytree(drill.whole, drill.coder)


def failed_switch(drill: Drill, model: str = "qwen-coder"):  # type: ignore[no-untyped-def]
    """Switch to `model`, which must fail; the old model must serve afterwards."""
    with drill.server.watch().watching() as watch:
        answer = drill.server.switch(model)
        assert answer.status_code == 503, answer.text
        assert "Paris" in drill.server.chat("qwen-14b").text
    assert watch.most_at_once <= 1
    return answer.json()


def num_loads(ticket) -> int:  # type: ignore[no-untyped-def]
    return [p["phase"] for p in ticket["phases"]].count("loading")


def test_cut_weights_are_refused_before_the_old_model_notices(mended: Drill) -> None:
    """The file is shorter than its own header says."""
    epoch = mended.server.get("/health")["epoch"]
    weights = mended.coder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    ticket = failed_switch(mended)
    assert ticket["state"] == "failed"
    assert ticket["error"]["code"] == "checkpoint_broken"
    assert mended.server.get("/health")["epoch"] == epoch


@pytest.mark.parametrize("danger", ["auto_map", "pickle", "link"])
def test_unsafe_checkpoint_is_refused_before_the_old_model_notices(
    mended: Drill, danger: str
) -> None:
    """Code of its own, a pickle, a link out of its folder."""
    epoch = mended.server.get("/health")["epoch"]
    if danger == "auto_map":
        path = mended.coder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"A": "b.C"}}))
    elif danger == "pickle":
        (mended.coder / "pytorch_model.bin").write_bytes(b"")
    else:
        (mended.coder / "vocab.json").unlink(missing_ok=True)
        (mended.coder / "vocab.json").symlink_to("/etc/passwd")
    ticket = failed_switch(mended)
    assert (ticket["state"], ticket["error"]["code"]) == ("failed", "checkpoint_unsafe")
    assert mended.server.get("/health")["epoch"] == epoch


def test_vanished_weights_are_refused_with_the_reason(mended: Drill) -> None:
    (mended.coder / "config.json").unlink()
    ticket = failed_switch(mended)
    assert ticket["error"]["code"] == "checkpoint_missing"


def test_engine_that_dies_in_its_start_is_rolled_back_after_one_try(mended: Drill) -> None:
    """A config that does not fit the weights."""
    config = json.loads((mended.coder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (mended.coder / "config.json").write_text(json.dumps(config))
    ticket = failed_switch(mended)
    assert ticket["state"] == "rolled_back"
    assert ticket["error"]["code"] == "engine_ended"
    assert num_loads(ticket) == 2  # the one that failed, and the old model's
    assert "engine of qwen-coder ended" in ticket["error"]["message"]


def test_wrong_weights_are_found_by_the_golden_answer(mended: Drill) -> None:
    """The file is whole, and its content is not the model. One restart, then the old one."""
    weights = mended.coder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(range(1, 128)) * 400_000)
    ticket = failed_switch(mended)
    assert ticket["state"] == "rolled_back"
    assert ticket["error"]["code"] == "golden_mismatch"
    assert num_loads(ticket) == 3  # twice the wrong one, and the old model's


def test_compiled_engine_answers_wrongly_and_is_rolled_back(mended: Drill) -> None:
    """vLLM 0.32 with Inductor in bf16 on the CPU says fluent nonsense with status 200."""
    ticket = failed_switch(mended, "qwen-vl")
    assert ticket["state"] == "rolled_back"
    assert ticket["error"]["code"] == "golden_mismatch"
    assert "does not contain 'Paris'" in ticket["error"]["message"]


def test_waiting_request_is_told_why_the_load_failed(mended: Drill) -> None:
    (mended.coder / "config.json").unlink()
    answer = mended.server.chat("qwen-coder")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_load_failed"
    assert "are not on this machine" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


def test_model_that_failed_once_can_be_switched_to_when_it_is_mended(mended: Drill) -> None:
    (mended.coder / "config.json").rename(mended.coder / "away")
    failed_switch(mended)
    (mended.coder / "away").rename(mended.coder / "config.json")
    assert mended.server.switch("qwen-coder").json()["state"] == "done"


def test_engine_that_dies_right_after_it_was_ready_is_rolled_back(mended: Drill) -> None:
    """A death within the probation is the switch's failure."""
    ticket = mended.server.switch("qwen-coder").json()
    assert ticket["state"] == "done"
    (engine,) = mended.server.watch().engines().values()
    engine[0].kill()
    path = f"/admin/switch/{ticket['id']}"
    wait_until(lambda: mended.server.get(path)["state"] == "rolled_back", 300, "it is rolled back")
    assert "Paris" in mended.server.chat("qwen-14b").text


def test_stopped_engine_is_found_by_its_probe_and_restarted(mended: Drill) -> None:
    """SIGSTOP of the engine core; `/health` stays 200, the known question is not answered."""
    epoch = mended.server.get("/health")["epoch"]
    (engine,) = mended.server.watch().engines().values()
    core = next(p for p in engine if "EngineCore" in " ".join(p.cmdline()))
    core.send_signal(signal.SIGSTOP)
    mended.server.wait_serving("qwen-14b", after_epoch=epoch)
    assert not core.is_running()
    assert "Paris" in mended.server.chat("qwen-14b").text


def test_kill_9_of_the_raylet_leaves_no_engine(drill: Drill) -> None:
    """The last test of this server: its cluster is lost. The supervisor sees its owner gone and
    ends the engine."""
    drill.server.switch("qwen-14b")
    (engine,) = drill.server.watch().engines().values()
    tree = psutil.Process(drill.server.process.pid).children(recursive=True)
    next(p for p in tree if p.name() == "raylet").kill()
    wait_until(lambda: not any(p.is_running() for p in engine), 120, "the engine is gone")
