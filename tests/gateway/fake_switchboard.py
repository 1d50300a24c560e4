"""A Switchboard whose view is whatever the test says, and that remembers what it was told."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prometheus_client import Metric
from ray.exceptions import RayError

from deployments.residency import Failure, GatewayReport, Problem, State
from deployments.switchboard.messages import Event, EventPage, View


class FakeSwitchboard:
    """Answers `watch` like the real one: at once when there is something new, else not."""

    def __init__(self) -> None:
        self.view = View("boot-1", 0, State.EMPTY, 0, None, None, False)
        self.reports: list[GatewayReport] = []
        self.is_away = False  # every call raises, as to a dead actor
        self.num_refused = 0
        self.switches: list[tuple[str, float | None, float | None]] = []
        self.targets: list[str] = []  # of switches and leases
        self.questions: list[tuple[Any, ...]] = []  # of admins
        self.listened: list[tuple[str, int] | None] = []
        self.happened: list[Event] = []
        self.answer: dict[str, Any] | Exception = {"id": "sw-1", "state": "running"}
        self.counted: list[Metric] = []  # what it tells of itself, while `telling` is set
        self.telling = asyncio.Event()
        self.telling.set()
        self._changed = asyncio.Condition()

    # --- for tests ---

    async def show(self, **changes: Any) -> View:
        """The next view: the last one with `changes`."""
        self.view = replace(self.view, version=self.view.version + 1, **changes)
        await self._notify()
        return self.view

    async def serve(self, model: str, endpoint: str, epoch: int) -> View:
        return await self.show(
            state=State.SERVING, holder=model, endpoint=endpoint, epoch=epoch, is_cut=False
        )

    async def fail(self, model: str, seq: int, retry_after_s: float = 60) -> View:
        """`model` could not be loaded."""
        problem = Problem("load_failed", "weights are cut short")
        failed = Failure(seq, problem, 0.0, retry_after_s)
        return await self.show(failures=self.view.failures | {model: failed})

    async def happen(self, kind: str, **data: Any) -> None:
        """One more event."""
        self.happened.append(Event(len(self.happened) + 1, kind, data))
        await self._notify()

    async def go_away(self) -> None:
        """From now on every call raises, also the one that waits."""
        self.is_away = True
        await self._notify()

    async def told(self, is_it: Callable[[GatewayReport], bool]) -> GatewayReport:
        """The first report, from the newest on, that `is_it`."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: self.reports and is_it(self.reports[-1]))
        return self.reports[-1]

    async def refused(self, times: int) -> None:
        """Until that many calls have been refused."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: self.num_refused >= times)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _check_presence(self) -> None:
        if self.is_away:
            self.num_refused += 1
            await self._notify()
            raise RayError("the actor died")

    # --- what a gateway calls ---

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View:
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.is_away or (self.view.boot, self.view.version) != seen
            )
        await self._check_presence()
        return self.view

    async def report(self, report: GatewayReport) -> None:
        await self._check_presence()
        self.reports.append(report)
        await self._notify()

    async def begin_switch(
        self, target: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        self.targets.append(target)
        self.switches.append((target, drain_timeout_s, wait_s))
        return await self._canned()

    async def would_switch(self, target: str) -> dict[str, Any]:
        return await self._asked("would_switch", target)

    async def unload(self, drain_timeout_s: float | None, wait_s: float | None) -> dict[str, Any]:
        return await self._asked("unload", drain_timeout_s, wait_s)

    async def lease(self, target: str, seconds: float, owner: str) -> dict[str, Any]:
        self.targets.append(target)
        return await self._asked("lease", target, seconds, owner)

    async def end_lease(self) -> dict[str, Any]:
        return await self._asked("end_lease")

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        return await self._asked("ticket", ticket_id)

    async def tickets(self, limit: int) -> list[dict[str, Any]]:
        return [await self._asked("tickets", limit)] * limit

    async def status(self) -> dict[str, Any]:
        return await self._asked("status")

    async def metrics(self) -> list[Metric]:
        await self.telling.wait()
        await self._check_presence()
        return self.counted

    async def events(self, after: tuple[str, int] | None, timeout_s: float) -> EventPage:
        """A page of all events after a number, of none without; waits like the real one."""
        self.listened.append(after)
        if after is None or timeout_s == 0:
            await self._check_presence()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s), self._changed:
                    await self._changed.wait_for(
                        lambda: (
                            self.is_away
                            or after[0] != self.view.boot
                            or len(self.happened) > after[1]
                        )
                    )
            await self._check_presence()
        is_known = after is None or after[0] == self.view.boot
        last = len(self.happened) if after is None else after[1] if is_known else 0
        return EventPage(
            self.view.boot, len(self.happened), self.happened[last:], has_gap=not is_known
        )

    async def _asked(self, method: str, *args: Any) -> dict[str, Any]:
        self.questions.append((method, *args))
        return await self._canned()

    async def _canned(self) -> dict[str, Any]:
        await self._check_presence()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer
