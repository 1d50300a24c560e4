"""Serves one model with `ray.serve.llm`'s defaults until SIGTERM. Runs in the peer's environment,
so it imports nothing of this project: `python peer_app.py JSON` (see `peer.py`)."""

import json
import os
import signal
import sys
from typing import Any


def main(wish: dict[str, Any]) -> None:
    """Deploy, and wait for SIGTERM."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    stop = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    is_cpu = wish["device"] == "cpu"
    own = {"accelerator_config": {"kind": "cpu"}} if is_cpu else {}
    backend = {"distributed_executor_backend": "uni"} if is_cpu else {}
    config = LLMConfig(
        model_loading_config={"model_id": wish["model"], "model_source": wish["checkpoint"]},
        deployment_config={"num_replicas": 1},
        engine_kwargs=wish["engine"] | backend,
        **own,
    )
    # its model takes all the CPUs there are, and its router one more
    ray.init(num_cpus=(os.cpu_count() or 1) + 2, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": wish["port"]})
    serve.run(build_openai_app({"llm_configs": [config]}))
    signal.sigwait(stop)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
