"""The stub of the driver's libraries, compiled once; and programs that meet it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rehearsal.driver import DriverStub, compile_libraries
from tests.rehearsal.programs import Program


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled stubs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("the stub of the driver's libraries needs a C compiler: apt install gcc")
    return compile_libraries(tmp_path_factory.mktemp("driver"), compiler)


@pytest.fixture
def driver(libraries: Path, tmp_path: Path) -> DriverStub:
    """An idle RTX 5080."""
    return DriverStub(libraries, tmp_path)


@pytest.fixture
def start(driver: DriverStub, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts a program of `programs.py` on the machine of `driver`; all are ended."""
    home = tmp_path / "home"
    with ExitStack() as stack:
        yield lambda name, *arguments, **environment: stack.enter_context(
            Program(name, arguments, driver.environment(LLM_BACKEND_HOME=str(home)) | environment)
        )
