"""The next replica's process is there before it is needed."""

import time

import psutil
import pytest

from tests.cluster import victims
from tests.cluster.server import Server, wait_until

pytestmark = pytest.mark.timeout(600)


def spare_worker(server: Server) -> psutil.Process | None:
    """The worker of Ray that waits to become a replica, once it has imported everything."""
    tree = psutil.Process(server.process.pid).children(recursive=True)
    spares = [p for p in tree if p.name() == "ray::IDLE"]
    assert len(spares) <= 1
    if not spares:
        return None
    before = spares[0].cpu_times().user
    time.sleep(1)
    return spares[0] if spares[0].cpu_times().user - before < 0.1 else None


def test_each_switch_takes_the_worker_that_was_kept_ready_and_leaves_another(
    server: Server,
) -> None:
    server.switch("qwen-14b")
    for model in ("qwen-coder", "qwen-14b"):
        spare = wait_until(lambda: spare_worker(server), 180, "a worker is kept ready")
        assert server.switch(model).json()["state"] == "done"
        assert victims.find(server, "replica") == spare
