"""One real server, shared by all tests of this folder that do not break it for good."""

from collections.abc import Iterator

import pytest

from tests.cluster.server import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as server:
        assert server.get("/health")["resident"] == "qwen-14b"  # the default model
        yield server
