"""The measure of what engines on a GPU take, and that the plan learns from it."""

import pytest

from deployments.checkpoints.shape import shape_of
from deployments.memory.nvml import GpuProcess, GpuReading
from deployments.memory.overhead import engine_bytes, learn, measured_overhead
from deployments.memory.plan import GIB, RTX_5080_BYTES, Plan, Room
from deployments.memory.room import plan_on_paper
from deployments.settings import PROJECT, AppArgs, ModelSpec, known_checkpoints, load_settings

CARD = Room("cuda", RTX_5080_BYTES)
OVERHEAD_BYTES = int(1.12 * GIB)


@pytest.fixture
def spec() -> ModelSpec:
    return load_settings(AppArgs(profile="rtx5080"), has_gpu=False).models["qwen-14b"]


def plan_for(spec: ModelSpec, home) -> Plan:
    shape = shape_of(known_checkpoints(PROJECT / "configs")[spec.checkpoint])
    return plan_on_paper(spec, shape, CARD, home)


def learn_from_start(spec: ModelSpec, home, overhead_bytes: int = OVERHEAD_BYTES) -> None:
    """An engine that `spec`'s plan sized is ready, and holds that much beside the planned."""
    plan = plan_for(spec, home)
    learn(spec, plan, plan.weights_bytes + plan.kv_cache_bytes + overhead_bytes, home)


# --- what an engine holds ---


def test_engine_holds_what_the_driver_says_of_its_processes():
    """A browser that opens in the meantime is not counted."""
    before = GpuReading(used_bytes=GIB)
    processes = (
        GpuProcess(10, "EngineCore", 13 * GIB),
        GpuProcess(11, "worker", GIB // 4),
        GpuProcess(99, "firefox", 2 * GIB),
    )
    ready = GpuReading(used_bytes=17 * GIB, processes=processes)
    assert engine_bytes(before, ready, {9, 10, 11}) == 13 * GIB + GIB // 4


def test_engine_holds_the_difference_where_the_driver_names_no_processes():
    """As under WSL2."""
    ready = GpuReading(used_bytes=14 * GIB, processes=(GpuProcess(10, "EngineCore", None),))
    assert engine_bytes(GpuReading(used_bytes=GIB), ready, {10}) == 13 * GIB
    assert engine_bytes(GpuReading(), ready, {10}) is None


# --- what is kept of it ---


def test_plan_learns_the_overhead_and_each_load_measures_anew(spec, tmp_path):
    """A first load also holds what its compilation took."""
    assert measured_overhead(spec, tmp_path) is None
    learn_from_start(spec, tmp_path, 2 * GIB)
    assert measured_overhead(spec, tmp_path).size_bytes == 2 * GIB
    learn_from_start(spec, tmp_path)
    learned = measured_overhead(spec, tmp_path)
    assert (learned.size_bytes, learned.source) == (OVERHEAD_BYTES, "measured")


@pytest.mark.parametrize("overhead_gib", [-3.0, 0.1, 4.5])
def test_difference_that_no_overhead_can_be_is_not_learned(spec, tmp_path, overhead_gib):
    """Another program opened or closed while a driver that names none was asked."""
    learn_from_start(spec, tmp_path, int(overhead_gib * GIB))
    assert measured_overhead(spec, tmp_path) is None


def test_measurement_of_other_settings_is_not_used(spec, tmp_path):
    learn_from_start(spec, tmp_path)
    engine = spec.engine.model_copy(update={"max_num_batched_tokens": 4096})
    assert measured_overhead(spec.model_copy(update={"engine": engine}), tmp_path) is None
    golden = spec.golden.model_copy(update={"max_tokens": 9})  # nothing of memory
    assert measured_overhead(spec.model_copy(update={"golden": golden}), tmp_path)


def test_start_with_less_context_teaches_for_more(spec, tmp_path):
    """Else a model that the estimate refuses could never prove it wrong."""
    smaller = {"max_model_len": 16384, "gpu_memory_utilization": 0.9}
    engine = spec.engine.model_copy(update=smaller)
    learn_from_start(spec.model_copy(update={"engine": engine}), tmp_path)
    assert measured_overhead(spec, tmp_path)


def test_plan_takes_the_measured_overhead(spec, tmp_path):
    before = plan_for(spec, tmp_path)
    learn_from_start(spec, tmp_path)
    after = plan_for(spec, tmp_path)
    assert (before.overhead_source, after.overhead_source) == ("estimate", "measured")
    assert after.overhead_bytes == measured_overhead(spec, tmp_path).size_bytes
    assert after.kv_room_tokens > before.kv_room_tokens


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 1, "overhead_bytes": 2}'])
def test_damaged_record_is_no_record(spec, tmp_path, content):
    learn_from_start(spec, tmp_path)
    (tmp_path / "memory" / "qwen-14b-generate.json").write_text(content)
    assert measured_overhead(spec, tmp_path) is None


def test_record_that_can_not_be_written_stops_nothing(spec, tmp_path):
    (tmp_path / "memory").write_text("a file where the folder belongs")
    learn_from_start(spec, tmp_path)
