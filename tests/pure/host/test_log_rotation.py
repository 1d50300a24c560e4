"""Ray's logs of processes that have ended are removed, but for the newest; no others are."""

import os
from pathlib import Path

from deployments.host.log_rotation import remove_spent

OVER = 2**22 + 1  # past Linux's largest process number


def test_logs_of_ended_workers_are_removed_except_the_newest(tmp_path: Path) -> None:
    """By Ray's and Serve's names for them; a living process keeps its own, however old."""
    (tmp_path / "serve").mkdir()
    (tmp_path / "events").mkdir()
    living = [
        f"worker-ab12-01000000-{os.getpid()}.err",
        f"events/event_CORE_WORKER_{os.getpid()}.log",
        "gcs_server.out",
        "serve/proxy_127.0.0.1.log",
        "serve/replica_llm-backend_Gateway_s75a32jx.log",
    ]
    dead = [
        "worker-ab12-01000000-{}.err",
        "python-core-worker-ab12_{}.log",
        "python-core-worker-ab12_{}.log.1",
        "events/event_CORE_WORKER_{}.log",
        "serve/replica_llm-backend_qwen-14b_{}.log",
    ]
    for name in living:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    for n in range(40):
        for name in dead:
            path = tmp_path / name.format(OVER + n)
            path.touch()
            os.utime(path, (n, n))
    remove_spent(tmp_path, ["qwen-14b"])
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    newest = {name.format(OVER + n) for name in dead for n in range(28, 40)}
    assert left == newest | set(living)
