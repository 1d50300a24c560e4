"""The real HAProxy in front of a test's gateway, with the configuration that the product runs."""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.launcher.haproxy import HEALTH_CHECK_INTERVAL, HEALTH_CHECK_MISSES, prepare
from serve_app.launcher.ports import free_port


@dataclass(frozen=True)
class Proxy:
    """A running HAProxy."""

    port: int
    process: psutil.Process

    async def cpu_share(self, window_s: float = 0.3) -> float:
        """Which share of a core it takes while the test's loop runs on."""
        began, spent = time.monotonic(), sum(self.process.cpu_times()[:2])
        await asyncio.sleep(window_s)  # nothing to wait for: it is a rate that is measured
        return (sum(self.process.cpu_times()[:2]) - spent) / (time.monotonic() - began)


def written(folder: Path, port: int, gateway_port: int | None = None) -> Path:
    """What Ray writes into a node's folder in `folder`, which holds what the mode needs; without a
    gateway, as where no application is up yet."""
    node = folder / "node"
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        is_head=True,
        socket_path=str(node / "admin.sock"),
        server_state_base=str(node),
        server_state_file=str(node / "server-state"),
        metrics_socket_path=str(node / "metrics.sock"),
    )
    backends = {}
    if gateway_port:
        server = ServerConfig(name="gateway", host="127.0.0.1", port=gateway_port)
        backends["app"] = BackendConfig(
            name="app",
            path_prefix="/",
            servers=[server],
            app_name="app",
            health_check_inter=HEALTH_CHECK_INTERVAL,
            health_check_fastinter=HEALTH_CHECK_INTERVAL,
            health_check_fall=HEALTH_CHECK_MISSES,
        )
    file = node / "haproxy.cfg"
    HAProxyApi(
        cfg=config, backend_configs=backends, config_file_path=str(file)
    )._generate_config_file_internal()
    return file


@asynccontextmanager
async def running(gateway_port: int) -> AsyncIterator[Proxy]:
    """HAProxy as Ray starts it: through the guard, which mends the file first."""
    with tempfile.TemporaryDirectory(prefix="llmb-") as name:
        folder, port = Path(name), free_port()
        binary = prepare(folder)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        file = written(folder, port, gateway_port)
        process = await asyncio.create_subprocess_exec(
            binary, "-db", "-f", file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await _answers(f"http://127.0.0.1:{port}/health", process)
            yield Proxy(port, psutil.Process(process.pid))
        finally:
            process.terminate()
            await process.wait()


async def _answers(url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while True:
            assert process.returncode is None, "HAProxy has ended"
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0)
