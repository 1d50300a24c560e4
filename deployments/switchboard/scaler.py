"""Scales a model's deployment to zero or one replica, through Serve's external scaler.

Serve lets an external scaler set the counts if the application has
`external_scaler_enabled: true`. The call goes to the dashboard, which Ray's token guards. Serve
accepts zero in this call, but not as a deployment's first count: the schema refuses zero there, and
setting the private field behind it makes `serve status` fail (Ray 2.60). So each model starts with
a replica that holds no engine.

The autoscaler (min 0, max 1) is no substitute: its request metrics outlive a switch and start the
old model again.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve
from ray._private.authentication.http_token_authentication import (
    get_auth_headers_if_auth_enabled,
)
from ray._private.services import get_webui_url_from_internal_kv

_POLL_S = 0.05
_NOT_YET = {404, 412, 503}  # the application is still being deployed, or the controller restarts


class ScalingFailed(Exception):
    """Serve did not set a replica count within the deadline."""


def dashboard_url() -> str:
    """The address of this cluster's dashboard.

    It is read from the cluster's own store: a worker's node object has the default address, which
    may belong to another cluster on this machine.
    """
    return f"http://{get_webui_url_from_internal_kv()}"


def session_name() -> str:
    """The name that Ray gave to this run of the cluster."""
    name: str = ray._private.worker.global_worker.node.address_info["session_dir"]
    return Path(name).name


@dataclass(frozen=True)
class Replicas:
    """How many replicas a deployment has."""

    num_existing: int  # in any state: waiting for the GPU, starting, running, stopping
    num_running: int


class ReplicaScaler:
    """Sets and reads the replica counts of one application's deployments."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._ending: set[str] = set()  # deployments that were scaled to zero and may have one yet

    async def scale(self, deployment: str, num_replicas: int, timeout_s: float) -> None:
        """Ask for zero or one replica; returns when Serve has accepted the count, not reached it.

        Waits first for a replica that is about to end, which Serve would take for the new one.

        Raises:
            ScalingFailed: Serve refused, or did not accept within `timeout_s`.
        """
        if num_replicas and deployment in self._ending:
            with suppress(ScalingFailed):
                await self.wait_gone(deployment, timeout_s)
        await self._post_count(deployment, num_replicas, timeout_s)
        if num_replicas:
            self._ending.discard(deployment)
        else:
            self._ending.add(deployment)

    async def _post_count(self, deployment: str, num_replicas: int, timeout_s: float) -> None:
        path = f"/api/v1/applications/{self._app_name}/deployments/{deployment}/scale"
        headers = {"Content-Type": "application/json"}
        headers |= get_auth_headers_if_auth_enabled(headers)
        body = {"target_num_replicas": num_replicas}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with aiohttp.ClientSession() as session:
            while True:
                answer = "no answer"
                try:
                    async with session.post(
                        f"{dashboard_url()}{path}", json=body, headers=headers
                    ) as response:
                        if response.status == 200:
                            return
                        answer = f"{response.status} {await response.text()}"
                        if response.status not in _NOT_YET:
                            break
                except aiohttp.ClientError as exc:
                    answer = repr(exc)
                if loop.time() > deadline:
                    break
                await asyncio.sleep(_POLL_S)
        raise ScalingFailed(
            f"Ray Serve did not scale {deployment} to {num_replicas} replicas: {answer}"
        )

    async def replicas(self) -> dict[str, Replicas]:
        """Deployment name -> its replicas, as Serve's controller sees them."""
        status = await asyncio.to_thread(serve.status)
        application = status.applications[self._app_name]
        deployments: dict[str, Any] = application.deployments
        replicas = {
            name: Replicas(
                num_existing=sum(d.replica_states.values()),
                num_running=d.replica_states.get("RUNNING", 0),
            )
            for name, d in deployments.items()
        }
        self._ending &= {name for name, found in replicas.items() if found.num_existing}
        return replicas

    async def wait_gone(self, deployment: str, timeout_s: float) -> None:
        """Wait until no replica of `deployment` is left.

        Raises:
            ScalingFailed: one is left after `timeout_s`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (await self.replicas())[deployment].num_existing:
            if asyncio.get_running_loop().time() > deadline:
                self._ending.discard(deployment)  # Serve kept the replica: a load can use it
                raise ScalingFailed(
                    f"a replica of {deployment} was still there after {timeout_s:.0f} s"
                )
            await asyncio.sleep(_POLL_S)  # Serve reports no changes by itself
