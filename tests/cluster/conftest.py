"""One real server, shared by all tests of this folder that do not break it for good."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.server import Server, running

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server as in most users' shells: with their umask, and where all users of the machine can
    get as far as its home and Ray's folder."""
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="open-") as folder:
            Path(folder).chmod(0o755)
            with running(Path(folder)) as server:
                server.ray_tmp.chmod(0o755)
                assert server.get("/health")["resident"] == "qwen-14b"  # the default model
                yield server
    finally:
        os.umask(before)


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the server. The one that takes every core comes last: other tests
    run beside these."""
    for item in items:
        uses_it = item.path.parent == FOLDER and "server" in getattr(item, "fixturenames", ())
        if uses_it and not item.get_closest_marker("own_server"):
            item.add_marker("shared_server")
    items.sort(key=lambda item: item.path.name == "test_busy_machine.py")
