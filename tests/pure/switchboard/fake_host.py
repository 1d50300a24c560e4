"""A host whose engines do what the test says, and that sees who is in the place."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Any

from deployments.checkpoints.checkpoint import CheckpointError
from deployments.engine.events import EngineEvent, EngineGone, EngineReady, EngineVerifying
from deployments.memory.plan import Plan
from deployments.residency import Problem, UnloadMode

BROKEN = Problem("engine_ended", "the engine ended")


class FakeReplicas:
    """Closing a gate holds every call there; `loads` and `releases`: what was begun, in order."""

    def __init__(self) -> None:
        self.found: tuple[str, int, str] | None = None  # what runs already
        self.faults: dict[str, deque[Problem | Exception]] = defaultdict(deque)  # of the next loads
        self.refusals: dict[str, Problem] = {}  # what the check of the files finds
        self.plans: dict[str, Plan] = {}
        self.sockets: dict[str, str] = {}  # where a model's engine listens, if it matters
        self.context_tokens = 8192
        self.release_fault: Exception | None = None
        self.find, self.prepare_, self.load, self.unload = gates = [
            asyncio.Event() for _ in range(4)
        ]
        for gate in gates:
            gate.set()
        self.run = "session-1"
        self.loads: list[str] = []
        self.releases: list[str] = []
        self.partings: list[UnloadMode] = []  # how each of them was meant
        self.sleepers: list[str] = []
        self.num_prepared = 0
        self.has_changed = asyncio.Condition()  # one of the above
        self.in_place: set[str] = set()
        self.loaded_while_other_resident: list[tuple[str, set[str]]] = []
        self._deaths: dict[str, asyncio.Event] = {}

    def lose(self, model: str) -> None:
        """The engine dies."""
        self._deaths[model].set()

    async def begun(self, model: str) -> None:
        """Until a load of `model` is the last that has begun."""
        async with asyncio.timeout(60), self.has_changed:
            await self.has_changed.wait_for(lambda: self.loads[-1:] == [model])

    async def check(self, model: str) -> None:
        if model in self.refusals:
            raise CheckpointError(self.refusals[model])

    async def plan(self, model: str) -> Plan | None:
        return self.plans.get(model)

    def memory_status(self) -> dict[str, Any]:
        return {"freed_last_bytes": None, "drift_bytes": 0, "warning": None}

    async def prepare(self, model: str) -> None:
        self.num_prepared += 1
        await self.prepare_.wait()
        await self.check(model)

    async def run_engine(self, model: str, epoch: int) -> AsyncIterator[EngineEvent]:
        death = self._deaths[model] = asyncio.Event()
        if self.found and self.found[:2] == (model, epoch):
            self.in_place.add(model)
        else:
            await self._begin(model)
            await self.load.wait()
            fault = self.faults[model].popleft() if self.faults[model] else None
            if isinstance(fault, Exception):
                raise fault
            yield EngineVerifying()
            if fault:
                yield EngineGone(fault)
                return
            socket = self.sockets.get(model, f"/run/{model}-{epoch}.sock")
            yield EngineReady(socket, self.context_tokens, {"weights": 1.5})
        await death.wait()
        yield EngineGone(BROKEN)

    def asleep(self) -> tuple[str, ...]:
        return tuple(self.sleepers)

    async def unload_engine(self, model: str, mode: UnloadMode) -> None:
        self.releases.append(model)
        self.partings.append(mode)
        await self.unload.wait()
        self.in_place.discard(model)
        self._deaths[model].set()
        if self.release_fault:
            raise self.release_fault

    async def find_running(self, wanted: str | None) -> tuple[str, int, str] | None:
        await self.find.wait()
        return self.found

    def session(self) -> str:
        return self.run

    def dashboard_url(self) -> str:
        return "http://dashboard"

    async def _begin(self, model: str) -> None:
        if self.in_place:
            self.loaded_while_other_resident.append((model, set(self.in_place)))
        self.in_place.add(model)
        self.loads.append(model)
        async with self.has_changed:
            self.has_changed.notify_all()
