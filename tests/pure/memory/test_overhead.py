"""What an engine on a GPU logs of its memory, and that the plan learns from it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from deployments.checkpoints.shape import shape_of
from deployments.memory.overhead import EngineReport, learn, measured_overhead, read_report
from deployments.memory.plan import GIB, RTX_5080_BYTES, Room
from deployments.memory.room import plan_on_paper
from deployments.settings import PROJECT, AppArgs, ModelSpec, known_checkpoints, load_settings

# As vllm 0.32.0 writes them, in their order, with made-up numbers.
WEIGHTS = (
    "(EngineCore pid=7) INFO 11-22 19:50:06 [gpu_model_runner.py:5149] Model loading took 9.31 GiB "
    "memory and 4.051234 seconds\n"
)
KV_ROOM = (
    "(EngineCore pid=7) INFO 11-22 19:50:20 [gpu_worker.py:759] Available KV cache memory: 3.10 "
    "GiB\n"
)
LIMIT = (
    "(EngineCore pid=7) INFO 11-22 19:50:31 [gpu_worker.py:1034] Free memory on device "
    "(15.41/15.92 GiB) on startup. Desired GPU memory utilization is (0.85, 13.53 GiB). Actual "
    "usage is 9.62 GiB for consumed memory (weights + non-torch), 0.71 GiB for peak activation, "
    "and 0.10 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with "
    "`--kv-cache-memory=3214567890` (2.99 GiB) to fit into requested memory, or "
    "`--kv-cache-memory=5114567890` (4.76 GiB) to fully utilize gpu memory. Current kv cache "
    "memory in use is 3.10 GiB.\n"
)
REUSED = (
    "(EngineCore pid=7) INFO 11-22 19:50:20 [gpu_worker.py:664] Initial free memory 15.41 GiB, "
    "reserved 2.99 GiB memory for KV Cache as specified by kv_cache_memory_bytes config and "
    "skipped memory profiling.\n"
)


@pytest.fixture
def spec() -> ModelSpec:
    return load_settings(AppArgs(profile="rtx5080"), has_gpu=False).models["qwen-14b"]


def test_report_is_read_from_the_lines_vllm_writes():
    report = read_report(WEIGHTS + "noise\n" + KV_ROOM + LIMIT)
    assert report == EngineReport(int(13.53 * GIB), int(9.31 * GIB), int(3.10 * GIB))
    assert abs(report.overhead_bytes / GIB - (1.12 - 0.015)) < 0.001


def test_patterns_are_in_the_installed_vllms_source():
    """A new vLLM that words them otherwise would teach nothing, silently."""
    (package,) = find_spec("vllm").submodule_search_locations
    worker = Path(package) / "v1" / "worker"
    runner = (worker / "gpu_model_runner.py").read_text()
    source = (worker / "gpu_worker.py").read_text()
    assert '"Model loading took %s GiB memory and' in runner
    assert '"Available KV cache memory: %s GiB"' in source
    assert 'f"Desired GPU memory utilization is "' in source


@pytest.mark.parametrize(
    "log", ["", WEIGHTS, WEIGHTS + KV_ROOM, WEIGHTS + REUSED, KV_ROOM + LIMIT, WEIGHTS + LIMIT]
)
def test_start_that_measured_nothing_reports_nothing(log):
    assert read_report(log) is None


def test_report_that_can_not_be_is_none():
    """More weights and KV cache than the limit."""
    too_large = WEIGHTS.replace("9.31", "12.31")
    assert read_report(too_large + KV_ROOM + LIMIT) is None


def test_plan_learns_and_a_start_without_measurement_forgets_nothing(spec, tmp_path):
    assert measured_overhead(spec, tmp_path) is None
    learn(spec, WEIGHTS + KV_ROOM + LIMIT, tmp_path)
    learned = measured_overhead(spec, tmp_path)
    assert learned.source == "measured"
    assert abs(learned.size_bytes / GIB - (1.12 - 0.015)) < 0.001
    learn(spec, WEIGHTS + REUSED, tmp_path)
    assert measured_overhead(spec, tmp_path) == learned


def test_measurement_of_other_settings_is_not_used(spec, tmp_path):
    learn(spec, WEIGHTS + KV_ROOM + LIMIT, tmp_path)
    engine = spec.engine.model_copy(update={"max_num_batched_tokens": 4096})
    assert measured_overhead(spec.model_copy(update={"engine": engine}), tmp_path) is None
    golden = spec.golden.model_copy(update={"max_tokens": 9})  # nothing of memory
    assert measured_overhead(spec.model_copy(update={"golden": golden}), tmp_path)


def test_start_with_less_context_teaches_for_more(spec, tmp_path):
    """Else a model that the estimate refuses could never prove it wrong."""
    smaller = {"max_model_len": 16384, "gpu_memory_utilization": 0.9}
    engine = spec.engine.model_copy(update=smaller)
    learn(spec.model_copy(update={"engine": engine}), WEIGHTS + KV_ROOM + LIMIT, tmp_path)
    assert measured_overhead(spec, tmp_path)


def test_plan_takes_the_measured_overhead(spec, tmp_path):
    shape = shape_of(known_checkpoints(PROJECT / "configs")[spec.checkpoint])
    card = Room("cuda", RTX_5080_BYTES)
    before = plan_on_paper(spec, shape, card, tmp_path)
    learn(spec, WEIGHTS + KV_ROOM + LIMIT, tmp_path)
    after = plan_on_paper(spec, shape, card, tmp_path)
    assert (before.overhead_source, after.overhead_source) == ("estimate", "measured")
    assert after.overhead_bytes == measured_overhead(spec, tmp_path).size_bytes
    assert after.kv_room_tokens > before.kv_room_tokens


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 1, "overhead_bytes": 2}'])
def test_damaged_record_is_no_record(spec, tmp_path, content):
    learn(spec, WEIGHTS + KV_ROOM + LIMIT, tmp_path)
    (tmp_path / "memory" / "qwen-14b-generate.json").write_text(content)
    assert measured_overhead(spec, tmp_path) is None


def test_record_that_can_not_be_written_stops_nothing(spec, tmp_path):
    (tmp_path / "memory").write_text("a file where the folder belongs")
    learn(spec, WEIGHTS + KV_ROOM + LIMIT, tmp_path)
