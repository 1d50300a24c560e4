"""What a host refuses before a load, and what it keeps of each unload."""

import fcntl
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine import gpu_lock
from deployments.memory.monitor import HostMemory, MemoryCycles
from deployments.memory.nvml import GpuProcess, GpuReading
from deployments.memory.plan import CUDA_RESERVED_BYTES, GIB, RTX_5080_BYTES
from deployments.memory.room import session_bytes
from deployments.settings import PROJECT, AppArgs, Settings, known_checkpoints, load_settings, paths

KNOWN = known_checkpoints(PROJECT / "configs")
BOUND = GIB // 2
DESKTOP = GIB
RESERVED = (RTX_5080_BYTES - CUDA_RESERVED_BYTES) * 88 // 100  # the limit of the present engine
LITTLE = 100


class FakeCard:
    """`free_bytes` may be a list: one look after the other, the last one for ever."""

    def __init__(self, *free_bytes: int, holders: dict[tuple[int, str], int] | None = None) -> None:
        self.free_bytes, self.holders = list(free_bytes), holders or {}
        self.error: Exception | None = None

    def read(self) -> GpuReading:
        if self.error:
            raise self.error
        free = self.free_bytes.pop(0) if len(self.free_bytes) > 1 else self.free_bytes[0]
        return GpuReading(
            total_bytes=RTX_5080_BYTES,
            used_bytes=RTX_5080_BYTES - free,
            free_bytes=free,
            processes=tuple(GpuProcess(*who, size) for who, size in self.holders.items()),
        )


def settings_of(profile: str, home: Path) -> Settings:
    return load_settings(AppArgs(profile=profile, home=str(home)), has_gpu=False)


def write_checkpoint(folder: Path, name: str, num_bytes: int = 10) -> Path:
    """A folder with the config of `name` and weights that seem to be `num_bytes` long."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KNOWN[name]))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(10 + num_bytes)  # a hole: no disk is taken
    return folder


@contextmanager
def engine_in_place(home: Path, model: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that is noted as the engine which holds the place."""
    lock_file = home / paths.gpu_lock()
    lock_file.parent.mkdir(parents=True)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hold = "x = bytearray(64 * 2**20); print(flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", hold],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        gpu_lock.note_holder(lock_file, model=model, epoch=1, supervisor=1, session=process.pid)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


# --- before a load ---


def test_model_that_does_not_fit_the_card_is_refused_with_what_would_help(tmp_path):
    settings = settings_of("rtx5080", tmp_path)
    folder = write_checkpoint(tmp_path / "bf16", "Qwen/Qwen2.5-14B-Instruct", int(27.5 * GIB))
    memory = HostMemory(settings, FakeCard(RTX_5080_BYTES - DESKTOP))
    with pytest.raises(CheckpointError) as refused:
        memory.check(settings.models["qwen-14b"], folder)
    assert refused.value.problem.code == "does_not_fit"
    assert refused.value.problem.message == (
        "qwen-14b does not fit: weights 27.50 GiB and overhead 1.20 GiB leave no room for a KV "
        "cache in 13.61 GiB; what would help: a checkpoint of at most 11.66 GiB, or a card "
        "with 34 GiB"
    )


def test_model_that_fits_passes(tmp_path):
    settings = settings_of("rtx5080", tmp_path)
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-14B-Instruct-AWQ", int(9.29 * GIB))
    HostMemory(settings, FakeCard(RTX_5080_BYTES - DESKTOP)).check(
        settings.models["qwen-14b"], folder
    )


def test_card_that_somebody_else_fills_is_refused_before_the_old_engine_is_drained(tmp_path):
    settings = settings_of("rtx5080", tmp_path)
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-14B-Instruct-AWQ", GIB)
    card = FakeCard(2 * GIB, holders={(99999999, "blender"): 9 * GIB, (99999998, "x"): 0})
    with pytest.raises(CheckpointError) as refused:
        HostMemory(settings, card).check(settings.models["qwen-14b"], folder)
    assert (
        "held by: process 99999999 (blender) 9.00 GiB; what would" in refused.value.problem.message
    )


@pytest.mark.parametrize("is_named", [True, False])
def test_what_the_present_engine_holds_will_be_free(tmp_path, is_named):
    """Also where the driver does not tell which process holds it."""
    settings = settings_of("rtx5080", tmp_path)
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-14B-Instruct-AWQ", GIB)
    with engine_in_place(tmp_path, "qwen-coder") as engine:
        holders = {(engine.pid, "python"): RESERVED} if is_named else {}
        card = FakeCard(RTX_5080_BYTES - RESERVED - DESKTOP, holders=holders)
        made = HostMemory(settings, card).plan(settings.models["qwen-14b"], folder)
    assert made.fits, made.reason
    assert made.free_bytes == RTX_5080_BYTES - RESERVED - DESKTOP
    assert abs(made.available_bytes - (RTX_5080_BYTES - DESKTOP)) < LITTLE


@pytest.mark.parametrize("fault", ["no card", "nvml fails", "unknown shape"])
def test_what_can_not_be_judged_is_not_refused(tmp_path, fault):
    settings = settings_of("rtx5080", tmp_path)
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-14B-Instruct", 27 * GIB)
    card = FakeCard(GIB)
    if fault == "nvml fails":
        card.error = RuntimeError("driver")
    if fault == "unknown shape":
        (folder / "config.json").write_text("{}")
    memory = HostMemory(settings, None if fault == "no card" else card)
    assert memory.plan(settings.models["qwen-14b"], folder) is None
    memory.check(settings.models["qwen-14b"], folder)


def test_host_without_a_card_is_measured_itself(tmp_path, monkeypatch):
    settings = settings_of("cpu-demo", tmp_path)
    spec = settings.models["qwen-14b"]
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-Coder-7B-Instruct", GIB // 4)
    room = psutil.virtual_memory()
    space = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    made = HostMemory(settings, None).plan(spec.model_copy(update={"env": space}), folder)
    assert (made.device, made.total_bytes) == ("cpu", room.total)
    assert made.needed_bytes == made.weights_bytes + made.overhead_bytes + GIB
    huge = spec.model_copy(update={"env": {"VLLM_CPU_KVCACHE_SPACE": str(room.total // GIB + 1)}})
    with pytest.raises(CheckpointError) as refused:
        HostMemory(settings, None).check(huge, folder)
    assert refused.value.problem.code == "does_not_fit"


def test_memory_of_the_present_engine_counts_as_free_on_a_host(tmp_path):
    settings = settings_of("cpu-demo", tmp_path)
    folder = write_checkpoint(tmp_path / "a", "Qwen/Qwen2.5-Coder-7B-Instruct", GIB // 4)
    with engine_in_place(tmp_path, "qwen-coder"):
        made = HostMemory(settings, None).plan(settings.models["qwen-14b"], folder)
    assert made.available_bytes - made.free_bytes > 64 * 2**20


# --- after an unload ---


async def test_unload_is_measured_by_the_engines_processes_without_a_card(tmp_path):
    memory = HostMemory(settings_of("cpu-demo", tmp_path), None)
    with engine_in_place(tmp_path, "qwen-coder") as engine:
        async with memory.unloading("qwen-coder"):
            engine.kill()
            engine.wait()
        assert session_bytes(engine.pid) == 0
    status = memory.cycles.status()
    assert status["freed_last_bytes"] > 64 * 2**20
    assert (status["left_last_bytes"], status["drift_bytes"], status["warning"]) == (0, 0, None)


async def test_unload_is_measured_on_the_card_once_it_no_longer_shrinks(tmp_path):
    """A driver gives memory back in pieces."""
    total = RTX_5080_BYTES
    card = FakeCard(GIB, 2 * GIB, 9 * GIB, total - DESKTOP)
    memory = HostMemory(settings_of("rtx5080", tmp_path), card)
    with engine_in_place(tmp_path, "qwen-vl"):
        async with memory.unloading("qwen-vl"):
            pass
    status = memory.cycles.status()
    assert status["freed_last_bytes"] == total - DESKTOP - GIB
    assert status["left_last_bytes"] == status["left_baseline_bytes"] == DESKTOP


@pytest.mark.parametrize("holder", [None, "qwen-14b"])
async def test_model_without_an_engine_gives_nothing_back(tmp_path, holder):
    memory = HostMemory(settings_of("cpu-demo", tmp_path), None)
    if holder:
        with engine_in_place(tmp_path, holder):
            async with memory.unloading("qwen-vl"):
                pass
    else:
        async with memory.unloading("qwen-vl"):
            pass
    assert memory.cycles.status()["cycles"] == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_unload_goes_on_where_it_can_not_be_measured(tmp_path, when):
    card = FakeCard(GIB)
    memory = HostMemory(settings_of("rtx5080", tmp_path), card)
    has_unloaded = False
    with engine_in_place(tmp_path, "qwen-vl"):
        if when == "before":
            card.error = RuntimeError("driver")
        async with memory.unloading("qwen-vl"):
            card.error = RuntimeError("driver")
            has_unloaded = True
    assert has_unloaded
    assert memory.cycles.status()["cycles"] == []


async def test_engines_that_may_sleep_are_no_cycles(tmp_path):
    """What sleepers leave in the place is no leak."""
    settings = settings_of("cpu-demo", tmp_path).model_copy(update={"residency": "warm"})
    memory = HostMemory(settings, None)
    with engine_in_place(tmp_path, "qwen-vl"):
        async with memory.unloading("qwen-vl"):
            pass
    assert memory.cycles.status()["cycles"] == []


async def test_failed_unload_is_no_cycle(tmp_path):
    memory = HostMemory(settings_of("cpu-demo", tmp_path), None)
    with engine_in_place(tmp_path, "qwen-vl"), pytest.raises(RuntimeError, match="stuck"):
        async with memory.unloading("qwen-vl"):
            raise RuntimeError("stuck")
    assert memory.cycles.status()["cycles"] == []


# --- drift ---


def test_status_before_the_first_unload_is_all_none():
    status = MemoryCycles(BOUND).status()
    assert (status["freed_last_bytes"], status["warning"], status["drift_bytes"]) == (None, None, 0)


def test_memory_that_is_left_more_and_more_is_a_warning():
    cycles = MemoryCycles(BOUND)
    for n in range(6):
        cycles.add("qwen-vl", 14 * GIB, DESKTOP + n * BOUND // 4)
        assert (cycles.status()["warning"] is None) == (n <= 4), n
    status = cycles.status()
    assert status["drift_bytes"] == BOUND * 5 // 4
    assert status["warning"] == (
        "1.62 GiB were left after qwen-vl was unloaded, 0.62 GiB more than after the first unload"
    )
    assert status["freed_last_bytes"] < status["freed_baseline_bytes"]


def test_smaller_model_gives_back_less_without_a_warning():
    cycles = MemoryCycles(BOUND)
    cycles.add("qwen-14b", 14 * GIB, DESKTOP)
    cycles.add("qwen-vl", 8 * GIB, DESKTOP)
    status = cycles.status()
    assert (status["freed_last_bytes"], status["freed_baseline_bytes"]) == (7 * GIB, 7 * GIB)
    assert (status["drift_bytes"], status["warning"]) == (0, None)


def test_only_the_last_cycles_are_kept_and_the_baseline_outlives_them():
    cycles = MemoryCycles(BOUND)
    for n in range(30):
        cycles.add("qwen-vl", GIB, n)
    status = cycles.status()
    assert len(status["cycles"]) == 20
    assert status["left_baseline_bytes"] == 0
    assert status["cycles"][-1] == {"model": "qwen-vl", "freed_bytes": GIB - 29, "left_bytes": 29}
    json.dumps(status)
