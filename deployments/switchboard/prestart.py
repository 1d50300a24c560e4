"""Lets Ray keep a worker process ready, which becomes the next replica of a model.

A new replica is a new Python process that imports Ray and Serve: this takes a second and a half on
two cores, and no model serves meanwhile. A worker that started earlier and has imported the modules
in `RAY_preload_python_modules` (see `foreground.py`) becomes a replica in a tenth of that time. Ray
itself makes the same call for bursts of tasks.
"""

import logging
import os

import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.worker import global_worker
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

_KEPT_S = 3600  # Ray keeps idle workers longer, up to the number of its free CPUs
_TIMEOUT_S = 5.0

logger = logging.getLogger("llm_backend.switchboard")


def start_one() -> None:
    """Ask this node for a worker that fits the application's replicas; it is ready seconds later.

    Called in a replica after a load. If an idle worker is there already, no second one is started.
    Never raises: without the worker the next load is slower, and nothing else changes.
    """
    try:
        if _is_one_idle():
            return
        node = global_worker.node
        request = node_manager_pb2.PrestartWorkersRequest(
            language=common_pb2.PYTHON,
            job_id=global_worker.current_job_id.binary(),
            keep_alive_duration_secs=_KEPT_S,
            num_workers=1,
        )
        environment = ray.get_runtime_context().get_runtime_env_string()
        request.runtime_env_info.serialized_runtime_env = environment
        with init_grpc_channel(f"{node.node_ip_address}:{node.node_manager_port}") as channel:
            stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            stub.PrestartWorkers(request, timeout=_TIMEOUT_S)
    except Exception:  # Ray's private names may change; the model must serve all the same
        logger.exception("no worker process is kept ready: the next load takes a second longer")


def _is_one_idle() -> bool:
    raylet = psutil.Process(os.getppid())
    return any(worker.name() == "ray::IDLE" for worker in raylet.children())
