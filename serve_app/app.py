"""Builds the graph; the one file that knows every part. Named by `serve_config.yaml`."""

from typing import Any

import ray
from ray import serve
from ray.serve import Application

from deployments.model_server import ModelServer
from deployments.switchboard import SwitchboardDeployment
from serve_app.ingress import GatewayDeployment
from serve_app.settings import AppArgs, Place, load_settings

_PLENTY = 4096  # calls at once; the limits are the gateway's own, and Serve's would be silent ones


def build_app(args: AppArgs) -> Application:
    """The application: Gateway → Switchboard → one deployment a model.

    Serve knows no initial count of zero, so each model starts with one replica; a replica holds no
    engine until the Switchboard asks it to, Ray places only one of them, and the Switchboard's
    first act is to scale them all to zero.

    Raises:
        SettingsError: the files under `configs/` can not be used.
    """
    settings = load_settings(args, has_gpu=ray.cluster_resources().get("GPU", 0) > 0)
    servers: dict[str, Any] = {}
    for name in settings.models:
        server = serve.deployment(
            name=name,
            ray_actor_options=_actor_options(settings.place),
            max_ongoing_requests=16,
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=5,
            max_constructor_retry_count=1,
        )(ModelServer)
        servers[name] = server.bind(settings, name)
    switchboard = serve.deployment(
        name="Switchboard",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_PLENTY,
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
    )(SwitchboardDeployment).bind(settings, servers)
    gateway = serve.deployment(
        name="Gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_PLENTY,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
    )(GatewayDeployment).bind(settings, switchboard)
    app: Application = gateway
    return app


def _actor_options(place: Place) -> dict[str, object]:
    if place.resource == "GPU":
        return {"num_cpus": 0, "num_gpus": place.amount}
    return {"num_cpus": 0, "resources": {place.resource: place.amount}}
