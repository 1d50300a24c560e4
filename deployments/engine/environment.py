"""What the processes of an engine inherit from the one that starts them."""

import os
from pathlib import Path

from deployments.engine.args import EVERY_ENGINE, gpu_environment

ENGINE_SITE = Path(__file__).parent / "site"
_DROPPED = {
    "OMP_NUM_THREADS",  # Ray sets it to 1 in its workers
    # an engine checks no keys
    "LLM_BACKEND_API_KEY",
    "LLM_BACKEND_ADMIN_KEY",
    "LLM_BACKEND_CACHE_URL",
    # A user's settings for other programs: expandable segments fail under WSL2 as AWQ weights are
    # repacked (club-3090#60). A model's own `env` can set them.
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
}


def base_environment() -> dict[str, str]:
    """What an engine inherits from this process, with the import hook on its path."""
    path = os.pathsep.join(filter(None, [str(ENGINE_SITE), os.environ.get("PYTHONPATH")]))
    return {k: v for k, v in os.environ.items() if k not in _DROPPED} | {"PYTHONPATH": path}


def standby_environment(device: str) -> dict[str, str]:
    """What the standby imports in; a fork of it gets its engine's own."""
    return base_environment() | EVERY_ENGINE | (gpu_environment() if device == "cuda" else {})
