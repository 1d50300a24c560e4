"""Has Ray keep a worker process ready, which becomes the next replica of a model.

A new replica is a new Python process with Ray and Serve in it: a second and a half on two cores, in
which no model serves. A worker that was started before, and has imported what
`RAY_preload_python_modules` names (see `foreground.py`), becomes a replica in a tenth of that. Ray
makes this call for bursts of tasks.
"""

import logging
import os

import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.worker import global_worker
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

_KEPT_S = 3600  # Ray keeps as many idle workers as it has free CPUs for longer
_TIMEOUT_S = 5.0

logger = logging.getLogger("llm_backend.switchboard")


def start_one() -> None:
    """Ask this node for a worker that fits the application's replicas; it is ready seconds later.

    Called in a replica, after a load; where the worker that there was is still there, it stays the
    only one.
    Never raises: without one the next load is slower, and nothing else.
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
    except Exception:  # whatever becomes of Ray's private names, the model serves
        logger.exception("no worker is kept ready")


def _is_one_idle() -> bool:
    raylet = psutil.Process(os.getppid())
    return any(worker.name() == "ray::IDLE" for worker in raylet.children())
