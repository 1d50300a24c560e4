"""Bounds the size of logs that their writers do not rotate."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import psutil
from ray._private.worker import global_worker

from deployments.host import logs
from deployments.settings import Settings

_PERIOD_S = 30.0
# Files to keep. Each of Ray's workers leaves six files, and a load uses one or two workers.
_NUM_KEPT = 60
_WORKER = re.compile(r"[-_](\d+)\.(?:log|out|err)(?:\.\d+)?$")  # the number is its process id


async def keep_logs_bounded(settings: Settings) -> None:
    """Bound the logs of the engines, Serve, the standby, Redis and Ray, until cancelled."""
    names = [*settings.models, "serve", "standby", "redis"]
    paths = [logs.log_path(settings.home, name) for name in names]
    node = global_worker.node  # None where no Ray runs
    while True:
        for path in paths:
            await asyncio.to_thread(logs.keep_bounded, path)
        if node:
            await asyncio.to_thread(remove_spent, Path(node.get_logs_dir_path()), settings.models)
        await asyncio.sleep(_PERIOD_S)


def remove_spent(logs: Path, models: Iterable[str]) -> None:
    """Remove the logs of the models' replicas and of Ray's workers that have ended, except the
    newest: they may say why the last ones ended."""
    replicas = tuple(f"replica_llm-backend_{model}_" for model in models)
    spent = []
    for path in logs.rglob("*"):
        pid = _WORKER.search(path.name)
        is_over = pid and not psutil.pid_exists(int(pid[1]))
        if is_over or path.name.startswith(replicas):
            spent.append((_changed_ns(path), path))
    for _, path in sorted(spent, reverse=True)[_NUM_KEPT:]:
        path.unlink(missing_ok=True)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
