"""An engine gets what is free as it starts, and what it then holds is measured."""

import os
from pathlib import Path

import pytest

from deployments.engine.events import EngineFailed
from deployments.memory import engine_memory
from deployments.memory.engine_memory import EngineMemory
from deployments.memory.nvml import GpuProcess, GpuReadError, GpuReading
from deployments.memory.overhead import measured_overhead
from deployments.memory.plan import CUDA_RESERVED_BYTES, GIB, RTX_5080_BYTES
from deployments.settings import AppArgs, Settings, load_settings
from tests.pure.memory.test_monitor import write_checkpoint

ME = os.getpid()
SESSION = os.getsid(ME)


class Card:
    """An RTX 5080 of which the test says what is free, and who holds the rest."""

    def __init__(self, free_gib: float = 15.4) -> None:
        self.free_gib = free_gib
        self.processes: dict[tuple[int, str], float] = {}
        self.error: Exception | None = None

    def read(self) -> GpuReading:
        if self.error:
            raise self.error
        free_bytes = int(self.free_gib * GIB)
        return GpuReading(
            total_bytes=RTX_5080_BYTES,
            cuda_total_bytes=RTX_5080_BYTES - CUDA_RESERVED_BYTES,
            used_bytes=RTX_5080_BYTES - free_bytes,
            free_bytes=free_bytes,
            processes=tuple(GpuProcess(*who, int(g * GIB)) for who, g in self.processes.items()),
        )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    args = AppArgs(profile="rtx5080", home=str(tmp_path / "home"))
    settings = load_settings(args, has_gpu=False)
    switching = settings.switching.model_copy(update={"unload_timeout_s": 0.3})
    return settings.model_copy(update={"switching": switching})


@pytest.fixture
def coder(tmp_path: Path) -> Path:
    name = "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"
    return write_checkpoint(tmp_path / "coder", name, int(5.19 * GIB))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "big", "Qwen/Qwen2.5-14B-Instruct-AWQ", int(9.29 * GIB))


async def test_engine_alone_on_the_card_gets_all_of_its_limit(settings, coder):
    claim = await EngineMemory(settings, Card()).claim(settings.models["qwen-coder"], coder)
    assert claim.share.context_tokens == 32768
    assert abs(claim.share.kv_cache_bytes / GIB - 7.22) < 0.02
    # weights + overhead + KV cache, less vLLM's own CUDA context, of what CUDA gives out
    assert claim.share.utilization == pytest.approx((13.61 - 0.5) / 15.47, abs=0.002)


async def test_engine_beside_blender_gets_a_smaller_cache_and_the_same_context(settings, coder):
    claim = await EngineMemory(settings, Card(10.5)).claim(settings.models["qwen-coder"], coder)
    assert claim.share.context_tokens == 32768
    assert claim.plan.engine_bytes <= 9.5 * GIB


async def test_engine_beside_blender_gets_a_shorter_context_where_it_must(settings, big):
    claim = await EngineMemory(settings, Card(12)).claim(settings.models["qwen-14b"], big)
    assert 8192 <= claim.share.context_tokens < 32768
    assert claim.plan.engine_bytes <= 12 * GIB


async def test_engine_that_does_not_fit_beside_others_fails_with_their_names(settings, big):
    card = Card(6)
    card.processes = {(7, "blender"): 9.0}
    with pytest.raises(EngineFailed) as failed:
        await EngineMemory(settings, card).claim(settings.models["qwen-14b"], big)
    assert failed.value.problem.code == "gpu_memory_taken"
    assert "6.00 GiB free and 11.24 are needed; held by: process 7 (blender) 9.00 GiB" in (
        failed.value.problem.message
    )


async def test_driver_that_does_not_answer_leaves_the_size_to_vllm(settings, coder):
    card = Card()
    card.error = GpuReadError("GPU is lost")
    claim = await EngineMemory(settings, card).claim(settings.models["qwen-coder"], coder)
    assert (claim.plan, claim.share, claim.before.free_bytes) == (None, None, None)


async def test_checkpoint_of_unknown_shape_leaves_the_size_to_vllm_and_keeps_the_proof(
    settings, tmp_path
):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    spec = settings.models["qwen-coder"]
    claim = await EngineMemory(settings, Card()).claim(spec, folder)
    assert (claim.share, claim.before.free_bytes) == (None, int(15.4 * GIB))
    with pytest.raises(EngineFailed, match=r"13\.61 are needed"):
        await EngineMemory(settings, Card(13)).claim(spec, folder)


async def test_machine_without_a_card_claims_nothing(settings, coder):
    claim = await EngineMemory(settings, None).claim(settings.models["qwen-coder"], coder)
    assert claim.share is None


async def test_engine_that_is_ready_teaches_its_overhead(settings, coder, monkeypatch):
    monkeypatch.setattr(engine_memory, "_pids", lambda session: {ME})
    spec, card = settings.models["qwen-coder"], Card()
    memory = EngineMemory(settings, card)
    claim = await memory.claim(spec, coder)
    planned_bytes = claim.plan.weights_bytes + claim.plan.kv_cache_bytes
    card.processes = {(ME, "EngineCore"): planned_bytes / GIB + 0.9, (7, "firefox"): 1.0}
    await memory.learn(spec, SESSION)
    learned = measured_overhead(spec, settings.home)
    assert abs(learned.size_bytes / GIB - 0.9) < 0.001
    again = await memory.claim(spec, coder)
    assert again.plan.overhead_source == "measured"


async def test_sleeper_that_grows_is_refused(settings, coder, monkeypatch):
    """By more than 256 MiB since its first sleep."""
    monkeypatch.setattr(engine_memory, "_pids", lambda session: {ME})
    spec, card = settings.models["qwen-coder"], Card()
    memory = EngineMemory(settings, card)
    await memory.claim(spec, coder)
    for asleep_gib in (0.5, 0.7, 0.4):
        card.processes = {(ME, "EngineCore"): asleep_gib}
        await memory.fell_asleep(spec, SESSION)
    card.processes = {(ME, "EngineCore"): 0.8}
    with pytest.raises(EngineFailed) as failed:
        await memory.fell_asleep(spec, SESSION)
    assert failed.value.problem.message == (
        "qwen-coder holds 0.80 GiB of the GPU's memory asleep, 0.30 GiB more than in its first "
        "sleep"
    )


async def test_sleeper_wakes_only_where_its_memory_is_free(settings, coder, monkeypatch):
    monkeypatch.setattr(engine_memory, "_pids", lambda session: {ME})
    spec, card = settings.models["qwen-coder"], Card()
    memory = EngineMemory(settings, card)
    await memory.claim(spec, coder)
    card.processes = {(ME, "EngineCore"): 0.5}
    await memory.fell_asleep(spec, SESSION)
    card.free_gib = 13.2  # 13.61 less what it holds
    await memory.prove_room_to_wake()
    card.free_gib = 13.0
    with pytest.raises(EngineFailed, match=r"13\.11 are needed"):
        await memory.prove_room_to_wake()
