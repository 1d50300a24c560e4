"""Whatever becomes of the standby, a switch succeeds: by another standby, or by a plain start."""

import importlib.util
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.engine.args import engine_environment
from deployments.engine.forkserver import listens, socket_path
from deployments.settings import PROJECT
from tests.cluster import victims
from tests.cluster.server import Server, running, wait_until
from tests.specs import tiny

pytestmark = [pytest.mark.timeout(900), pytest.mark.own_server]

STANDBY_S = 240.0  # for one to be ready: its imports, on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of its own, as half of what follows is waiting: for imports, and for a standby that
    hangs. It unloads qwen-vl as soon as nobody asks for it."""
    folder = tmp_path_factory.mktemp("standby")
    configs = shutil.copytree(PROJECT / "configs", folder / "configs")
    file = configs / "backend.yaml"
    file.write_text(file.read_text().replace("idle_unload_s: {}", "idle_unload_s: {qwen-vl: 2}"))
    with running(folder, config_dir=str(configs)) as server:
        yield server


def ready_standby(server: Server) -> psutil.Process:
    """The standby, once it listens."""
    path = socket_path(server.home)
    found: psutil.Process = wait_until(
        lambda: listens(path) and victims.find_standby(server), STANDBY_S, "the standby is ready"
    )
    return found


def starts(server: Server) -> Counter[str]:
    """How engines were started so far: way -> number."""
    with server.http as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [s for family in families for s in family.samples]
    counts: Counter[str] = Counter()
    for sample in samples:
        if sample.name == "llm_backend_engine_starts_total":
            counts[sample.labels["way"]] += int(sample.value)
    return counts


def switch_to_the_other(server: Server) -> Counter[str]:
    """A switch that must succeed: the ways its engine was started."""
    other = the_other(server)
    before = starts(server)
    with server.watch().watching() as watch:
        ticket = server.switch(other).json()
        assert ticket["state"] == "done", ticket
        assert "Paris" in server.chat(other).text
    assert watch.most_at_once == 1
    return starts(server) - before


def the_other(server: Server) -> str:
    """The model that does not serve."""
    return "qwen-coder" if server.get("/health")["resident"] == "qwen-14b" else "qwen-14b"


@contextmanager
def killed_when_asked(server: Server, standby: psutil.Process) -> Iterator[None]:
    """Kill it as the next engine's log begins: just before it is asked, or just after."""
    log = server.home / "logs" / f"{the_other(server)}.log"
    size = log.stat().st_size if log.exists() else 0

    def kill() -> None:
        wait_until(
            lambda: log.exists() and log.stat().st_size > size, 120, "an engine is asked for"
        )
        standby.kill()

    with ThreadPoolExecutor() as thread:
        killing = thread.submit(kill)
        yield
        killing.result()


def test_forked_engine_computes_on_all_cores_but_one(server: Server) -> None:
    """The standby's own threads would be as many as there are cores: torch has counted them."""
    ready_standby(server)
    assert switch_to_the_other(server) == {"standby": 1}
    model = server.get("/health")["resident"]
    server.chat(model, max_tokens=200, ignore_eos=True)
    [processes] = server.watch().engines().values()
    [core] = [process for process in processes if "EngineCore" in process.name()]
    seconds = [thread.user_time for thread in core.threads()]  # all wait by spinning
    wanted = engine_environment(tiny(""), "cpu")["OMP_NUM_THREADS"]
    assert sum(s > max(seconds) / 2 for s in seconds) == int(wanted)


def test_dead_standby_is_replaced_while_the_old_model_still_serves(server: Server) -> None:
    """It had been ready, so the next one comes at once."""
    dead = ready_standby(server)
    dead.kill()
    assert switch_to_the_other(server) == {"standby": 1}
    assert ready_standby(server).pid != dead.pid


def test_idle_model_is_unloaded_and_the_next_request_loads_it(server: Server) -> None:
    """`idle_unload_s`: the GPU is free for others while nobody asks."""
    ready_standby(server)
    assert server.switch("qwen-vl").json()["state"] == "done"
    wait_until(lambda: server.get("/health")["state"] == "idle", 120, "it is unloaded")
    assert server.watch().engines() == {}
    before = starts(server)
    assert server.chat("qwen-vl").status_code == 200
    assert starts(server) - before == {"standby": 1}
    assert "Paris" in server.chat("qwen-14b").text


def test_hung_standby_is_ended_and_the_engine_started_without(server: Server) -> None:
    """What it had been sent must not come to life later, nor keep the lock of the place."""
    hung = ready_standby(server)
    hung.send_signal(signal.SIGSTOP)
    assert switch_to_the_other(server) == {"exec": 1}
    wait_until(lambda: not hung.is_running(), 90, "the hung standby is gone")
    ready_standby(server)
    assert switch_to_the_other(server) == {"standby": 1}


def test_standby_killed_as_it_forks_costs_one_plain_start_at_most(server: Server) -> None:
    """Whether its child lives already or not, one engine is started."""
    victim = ready_standby(server)
    with killed_when_asked(server, victim):
        began = switch_to_the_other(server)
    assert began.total() == 1
    assert not victim.is_running()


def test_standby_whose_packages_were_replaced_is_not_used(server: Server) -> None:
    """A newer file of vLLM on the disk: old modules in memory, new ones to be imported later.

    The engine is started plainly; or, where the old standby sees the file before it is asked, by
    the next one.
    """
    [path] = importlib.util.find_spec("vllm").submodule_search_locations  # type: ignore[union-attr]
    file = Path(path) / "__init__.py"
    old, before = ready_standby(server), file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        began = switch_to_the_other(server)
        wait_until(lambda: not old.is_running(), 90, "the old standby is gone")
        newer = ready_standby(server)
        (engine,) = server.watch().engines().values()
        assert began.total() == 1
        assert began["exec"] or engine[0].create_time() >= newer.create_time()
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    newer.kill()  # it knows the changed file


def test_standby_that_has_read_a_tokenizer_replaced_since_is_not_used(server: Server) -> None:
    """The next one reads the new files."""
    switch_to_the_other(server)
    switch_to_the_other(server)  # it has read both now
    old = ready_standby(server)
    folder = server.home / "models" / "smollm2-135m-instruct"
    file = folder / "tokenizer_config.json"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        assert switch_to_the_other(server) == {"exec": 1}
        wait_until(lambda: not old.is_running(), 90, "the old standby is gone")
        ready_standby(server)
        assert switch_to_the_other(server) == {"standby": 1}
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    ready_standby(server).kill()  # it knows the changed file
