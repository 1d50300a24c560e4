"""The next replica's process is there before it is needed."""

import psutil
import pytest

from tests.cluster import victims
from tests.cluster.server import Server, wait_until

pytestmark = pytest.mark.timeout(600)


def spare_worker(server: Server) -> psutil.Process | None:
    """The worker of Ray that waits to become a replica."""
    tree = psutil.Process(server.process.pid).children(recursive=True)
    return next((p for p in tree if "ray::IDLE" in " ".join(p.cmdline())), None)


def test_each_switch_takes_the_worker_that_was_kept_ready_and_leaves_another(
    server: Server,
) -> None:
    for model in ("qwen-coder", "qwen-14b"):
        server.wait_serving(str(server.get("/health")["resident"]))
        spare = wait_until(lambda: spare_worker(server), 30, "a worker is kept ready")
        assert server.switch(model).json()["state"] == "done"
        assert victims.find(server, "replica") == spare
