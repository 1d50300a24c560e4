"""What is started when: one engine at a time, in turns whose order alternates."""

import os
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from deployments.settings import ModelSpec, Settings
from tests.bench import bare, ours, peer, streams, traces
from tests.bench.samples import Samples
from tests.bench.targets import ALL_CORES, BARE, DIRECT_PEER, OURS, PEER, PYTHON_PROXY
from tests.cluster.server import Server, running

# Ray's own switch between the two modes of its HTTP front.
_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
_PYTHON_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
# Of `ray.serve.llm`; HAProxy's metrics are then open on all interfaces.
_DIRECT_STREAMING = _HAPROXY | {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}

_ASIDES = (ALL_CORES, PYTHON_PROXY)


@dataclass(frozen=True)
class Amounts:
    """How much of each is done. Per round, but for `warm` and `seeds`."""

    rounds: int
    waves: dict[int, int]  # concurrency -> waves
    num_tokens: int  # of each stream
    prompts: int  # of vLLM's `bench serve`; 0: it is left out
    bare_switches: int
    our_switches: int
    hits: int
    generations: int
    warm: int
    seeds: int  # of each simulated trace
    with_asides: bool  # what is told beside the rest, and not judged: once is enough


FULL = Amounts(
    rounds=2,
    waves={1: 10, 4: 2, 10: 5},
    num_tokens=40,
    prompts=30,
    bare_switches=5,
    our_switches=5,
    hits=20,
    generations=4,
    warm=12,
    seeds=2,
    with_asides=True,
)
QUICK = Amounts(
    rounds=1,
    waves={1: 6, 4: 2, 10: 2},
    num_tokens=24,
    prompts=0,
    bare_switches=1,
    our_switches=3,
    hits=20,
    generations=2,
    warm=3,
    seeds=1,
    with_asides=False,
)


@dataclass
class Bench:
    """One run. `folder`: of the report; `work`: for homes and logs."""

    settings: Settings
    specs: list[ModelSpec]  # that are switched between; the first is resident after a start
    amounts: Amounts
    folder: Path
    work: Path
    peer_python: Path | None
    samples: Samples
    say: Callable[[str], None]
    has_failed: bool = False

    def run(self) -> None:
        """Measure everything, the server's first start apart: the warm part makes it."""
        self.say("switches in simulated time")
        traces.measure(self.samples, self.amounts.seeds)
        turns = self._turns()
        self._take("warm switches", self._warm)
        self._take("vLLM's own sleep and wake", self._bare_sleep)
        for number in range(self.amounts.rounds):
            for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
                if number and name in _ASIDES:
                    continue
                self._take(f"round {number + 1} of {self.amounts.rounds}: {name}", turns[name])

    def _turns(self) -> dict[str, Callable[[], None]]:
        turns = {BARE: self._bare, OURS: self._ours}
        if self.amounts.with_asides:
            turns[PYTHON_PROXY] = self._python_proxy
            if self.settings.device == "cpu":
                turns[ALL_CORES] = self._bare_on_all_cores
        else:
            self.samples.skipped |= dict.fromkeys(_ASIDES, "left out of a quick run")
        if self.amounts.prompts == 0:
            self.samples.skipped["vLLM's bench serve"] = "left out of a quick run"
        if reason := peer.why_not(self.peer_python):
            self.samples.skipped |= dict.fromkeys((PEER, DIRECT_PEER), reason)
        else:
            turns[PEER] = partial(self._peer, PEER, {})
            turns[DIRECT_PEER] = partial(self._peer, DIRECT_PEER, _DIRECT_STREAMING)
        return turns

    def _take(self, name: str, act: Callable[[], None]) -> None:
        """One part. A part that fails is told in the report, and the others are measured."""
        began = time.monotonic()
        try:
            act()
            self.say(f"{name}: {time.monotonic() - began:.0f} s")
        except Exception as exc:  # noqa: BLE001  the report is the border
            traceback.print_exc()
            self.has_failed = True
            self.samples.skipped[name] = f"it failed: {type(exc).__name__}: {exc}"

    def _warm(self) -> None:
        with running(
            self.work, ray_environment=_HAPROXY, profile="auto", residency="warm"
        ) as server:
            ours.measure_warm_switches(server, self._names, self.amounts.warm, self.samples)

    def _bare_sleep(self) -> None:
        with self._bare_engine(can_sleep=True) as (engine, _):
            bare.measure_sleeping(engine, max(10, self.amounts.warm), self.samples)

    def _bare(self) -> None:
        with self._bare_engine() as (engine, start_s):
            self.samples.add("start_s", BARE, [start_s])
            self._load(BARE, engine.url, engine.roots)
            bare.measure_switches(engine, self.specs, self.amounts.bare_switches, self.samples)

    def _ours(self) -> None:
        began = time.monotonic()
        with running(self.work, ray_environment=_HAPROXY, profile="auto") as server:
            self.samples.add("start_s", OURS, [time.monotonic() - began])
            self._load_ours(OURS, server)
            amounts, model = self.amounts, self._names[0]
            ours.measure_cache(server, model, amounts.hits, amounts.generations, self.samples)
            ours.measure_switches(server, self._names, amounts.our_switches, self.samples)

    def _python_proxy(self) -> None:
        with running(self.work, ray_environment=_PYTHON_PROXY, profile="auto") as server:
            self._load_ours(PYTHON_PROXY, server)

    def _bare_on_all_cores(self) -> None:
        spec = self.specs[0]
        threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        spec = spec.model_copy(update={"env": spec.env | threads})
        with bare.running(self.settings, spec, self.work / "bare.log") as (engine, _):
            self._load(ALL_CORES, engine.url, engine.roots)

    def _peer(self, subject: str, ray_environment: dict[str, str]) -> None:
        assert self.peer_python
        log = self.work / "peer.log"
        with peer.running(self.peer_python, self.settings, self.specs[0], log, ray_environment) as (
            url,
            root,
        ):
            self._load(subject, url, lambda: [root])

    def _bare_engine(
        self, *, can_sleep: bool = False
    ) -> AbstractContextManager[tuple[bare.BareVllm, float]]:
        log = self.work / "bare.log"
        return bare.running(self.settings, self.specs[0], log, can_sleep=can_sleep)

    def _load_ours(self, subject: str, server: Server) -> None:
        self._load(subject, server.url, lambda: list(ours.roots(server)))

    def _load(self, subject: str, url: str, roots: Callable[[], list[psutil.Process]]) -> None:
        amounts, spec = self.amounts, self.specs[0]
        tokenizer = bare.folder_of(self.settings, spec)
        target = streams.Target(subject, url, spec.name, tokenizer, roots)
        streams.measure(target, self.samples, amounts.waves, amounts.num_tokens)
        if amounts.prompts and subject in (BARE, OURS):
            streams.measure_with_bench_serve(
                target, self.samples, self.folder, amounts.prompts, amounts.num_tokens
            )

    @property
    def _names(self) -> list[str]:
        return [spec.name for spec in self.specs]
