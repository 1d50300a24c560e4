"""Ray's own LLM server, `ray.serve.llm`, from an environment of its own: it pins another vLLM."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from deployments.checkpoints import checkpoint
from deployments.engine.args import engine_environment
from deployments.engine.environment import ENGINE_SITE
from deployments.settings import ModelSpec, Settings
from serve_app.launcher.ports import free_port

_APP = Path(__file__).with_name("peer_app.py")
_READY_S = 600.0


def why_not(python: Path | None) -> str | None:
    """Why it cannot be measured; None: it can."""
    if python is None:
        return "no environment with ray[llm] was named (--peer-env)"
    try:
        test = [str(python), "-c", "import ray.serve.llm, vllm"]
        done = subprocess.run(
            test, env=_environment(), capture_output=True, text=True, timeout=120, check=False
        )
    except OSError as exc:
        return f"{python}: {exc.strerror}"
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


@contextmanager
def running(
    python: Path,
    settings: Settings,
    spec: ModelSpec,
    log: Path,
    ray_environment: Mapping[str, str],
) -> Iterator[tuple[str, psutil.Process]]:
    """Its address, and the root of its processes."""
    port = free_port()
    engine = spec.engine
    wish = {
        "port": port,
        "model": spec.name,
        "checkpoint": str(checkpoint.check(spec, settings.home)),
        "device": settings.device,
        "engine": {
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "enforce_eager": engine.enforce_eager,
            "enable_prefix_caching": engine.enable_prefix_caching,
        },
    }
    with tempfile.TemporaryDirectory(prefix="llmb-", ignore_cleanup_errors=True) as ray_tmp:
        own = engine_environment(spec, settings.device) | {"RAY_TMPDIR": ray_tmp}
        with log.open("a") as output:
            process = subprocess.Popen(
                [str(python), str(_APP), json.dumps(wish)],
                env=_environment() | own | dict(ray_environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", spec.name, process, log)
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            family = []
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
                family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            for left in psutil.wait_procs(family, timeout=20)[1]:
                left.kill()


def _environment() -> dict[str, str]:
    """Nothing of our Ray; with what mends a broken torchvision for our engines too."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return own | {"PYTHONPATH": str(ENGINE_SITE)}


def _wait_until_ready(url: str, model: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    question = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray.serve.llm ended: see {log}"
        try:
            answer = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=60)
            if answer.status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"ray.serve.llm is not ready: see {log}")
