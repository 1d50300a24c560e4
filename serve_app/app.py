"""Builds the Ray Serve application that `serve_config.yaml` names."""

import math
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from deployments.host.card import find_card
from deployments.model_server.deployment import ModelServer
from deployments.settings import AppArgs, Settings, SettingsError, check_bound, load_settings
from deployments.switchboard.deployment import SwitchboardDeployment
from serve_app.ingress import GatewayDeployment

_LOOPBACK = "127.0.0.1"
_PLENTY = 4096  # calls at once: the gateway limits requests; Serve would queue them unseen


def build_app(args: AppArgs) -> Application:
    """Build the application: Gateway → Switchboard → one deployment for each model.

    Serve cannot start a deployment with zero replicas, so each model starts with one. A replica has
    no engine until the Switchboard starts one in it, Ray places only one of the replicas, and the
    Switchboard first scales them all to zero.

    Raises:
        SettingsError: the files under `configs/` are not valid.
    """
    # Without CUDA_VISIBLE_DEVICES, which Ray sets for this process as for each of its workers.
    settings = load_settings(args, has_gpu=find_card().is_there)
    if settings.place.resource == "GPU" and not ray.cluster_resources().get("GPU"):
        raise SettingsError(
            f"the profile {settings.profile} needs a GPU, and Ray has none: its driver does not "
            "answer, or CUDA_VISIBLE_DEVICES hides it; see `llm-backend doctor`, or set "
            "LLM_BACKEND_PROFILE=cpu-demo"
        )
    http = serve.context._get_global_client().http_config
    check_bound(http.host, settings)
    servers: dict[str, Any] = {}
    for name in settings.models:
        server = serve.deployment(
            name=name,
            ray_actor_options=_actor_options(settings),
            max_ongoing_requests=16,
            health_check_period_s=2,
            graceful_shutdown_timeout_s=0,  # the Switchboard or the supervisor ends the engine
            max_constructor_retry_count=1,
        )(ModelServer)
        servers[name] = server.bind(settings, name, (_LOOPBACK, http.port))
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


def _actor_options(settings: Settings) -> dict[str, object]:
    """Return the resources of a model's replica.

    In cold mode, as much of the GPU as lets Ray place only one replica. In warm mode, where engines
    sleep beside the one that is awake, an equal share for each model.
    """
    amount = settings.place.amount
    if settings.is_warm:
        amount = math.floor(100 / len(settings.models)) / 100
    if settings.place.is_gpu:
        return {"num_cpus": 0, "num_gpus": amount}
    return {"num_cpus": 0, "resources": {settings.place.resource: amount}}
