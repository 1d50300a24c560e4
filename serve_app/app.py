"""Builds the graph that `serve_config.yaml` names; the one file that imports every part."""

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
_PLENTY = 4096  # calls at once; the limits are the gateway's own, and Serve's would be silent ones


def build_app(args: AppArgs) -> Application:
    """The application: Gateway → Switchboard → one deployment a model.

    Serve knows no initial count of zero, so each model starts with one replica; a replica holds no
    engine until the Switchboard asks it to, Ray places only one of them, and the Switchboard's
    first act is to scale them all to zero.

    Raises:
        SettingsError: the files under `configs/` cannot be used.
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
            graceful_shutdown_timeout_s=0,  # its engine has been ended, or its supervisor does that
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
    """A model's share of the GPU: so much that Ray places one replica; or, where the others sleep
    beside the one that is awake, an equal share each."""
    amount = settings.place.amount
    if settings.is_warm:
        amount = math.floor(100 / len(settings.models)) / 100
    if settings.place.resource == "GPU":
        return {"num_cpus": 0, "num_gpus": amount}
    return {"num_cpus": 0, "resources": {settings.place.resource: amount}}
