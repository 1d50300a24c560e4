"""Where each file lies in the home folder: `home / paths.RESIDENCY`."""

from pathlib import Path

RUN = Path("run")  # what runs now: for its user alone
RESIDENCY = RUN / "residency.json"  # what the Switchboard remembers
SERVER = RUN / "server.json"  # which server runs
START_LOCK = RUN / "start.lock"
START_CONFIG = RUN / "start_config.yaml"  # with what `llm-backend start` was asked for
SERVE_CONFIG = RUN / "serve_config.yaml"  # with the address that the environment names
RAY_TOKEN = RUN / "ray_token"
STANDBY_SOCKET = RUN / "standby.sock"
GPU_LOCKS = "place*.lock"  # in RUN
FORK_FAILED = Path("fork_failed.json")  # why engines are not forked on this machine
FLAGS_CHECKED = Path("flags_checked")  # the engine settings that vLLM has checked, as a hash
IMPORTS = Path("imports.json")  # the modules that engines had imported
LOGS = Path("logs")
RESIDENCY_EVENTS = LOGS / "residency.jsonl"  # what the residency machine was told
MODELS = Path("models")  # checkpoints that are made here
CACHE = Path("cache")  # answers, where they are kept on disk
COMPILED = Path("compiled")  # kernels


def engine_socket(model: str, epoch: int) -> Path:
    return RUN / f"{model}-{epoch}.sock"


def gpu_lock(model: str | None = None) -> Path:
    """The lock on the place; where engines may sleep beside the one that is awake, one a model."""
    return RUN / (f"place-{model}.lock" if model else "place.lock")


def log(service: str) -> Path:
    return LOGS / f"{service}.log"


def golden(target: str) -> Path:
    """The answer that its engine gave first."""
    return Path("golden") / f"{target}.json"


def overhead(model: str, task: str) -> Path:
    """What its engine was seen to take beside weights and cache."""
    return Path("memory") / f"{model}-{task}.json"
