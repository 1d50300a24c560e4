"""The gateway's line to the Switchboard."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from prometheus_client import Metric
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.residency import GatewayReport
from deployments.view import EventPage, View
from serve_app.errors import BackendError, Unavailable

ANSWER_S = 10.0  # a call to a deployment with no replica would wait for ever

_T = TypeVar("_T")


class SwitchboardClient(Protocol):
    """What a gateway asks of the Switchboard; see there."""

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View: ...
    async def report(self, report: GatewayReport) -> None: ...
    async def events(self, after: tuple[str, int] | None, timeout_s: float) -> EventPage: ...
    async def begin_switch(
        self, target: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]: ...
    async def would_switch(self, target: str) -> dict[str, Any]: ...
    async def unload(
        self, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]: ...
    async def lease(self, target: str, seconds: float, owner: str) -> dict[str, Any]: ...
    async def end_lease(self) -> dict[str, Any]: ...
    async def ticket(self, ticket_id: str) -> dict[str, Any]: ...
    async def tickets(self, limit: int) -> list[dict[str, Any]]: ...
    async def status(self) -> dict[str, Any]: ...
    async def metrics(self) -> list[Metric]: ...


class HandleClient:
    """The Switchboard through its deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def watch(self, gateway: str, seen: tuple[str, int] | None) -> View:
        view: View = await self._handle.watch.remote(gateway, seen)
        return view

    async def report(self, report: GatewayReport) -> None:
        await self._handle.report.remote(report)

    async def events(self, after: tuple[str, int] | None, timeout_s: float) -> EventPage:
        page: EventPage = await self._handle.events.remote(after, timeout_s)
        return page

    async def begin_switch(
        self, target: str, drain_timeout_s: float | None, wait_s: float | None
    ) -> dict[str, Any]:
        return await self._ask("begin_switch", target, drain_timeout_s, wait_s)

    async def would_switch(self, target: str) -> dict[str, Any]:
        return await self._ask("would_switch", target)

    async def unload(self, drain_timeout_s: float | None, wait_s: float | None) -> dict[str, Any]:
        return await self._ask("unload", drain_timeout_s, wait_s)

    async def lease(self, target: str, seconds: float, owner: str) -> dict[str, Any]:
        return await self._ask("lease", target, seconds, owner)

    async def end_lease(self) -> dict[str, Any]:
        return await self._ask("end_lease")

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        return await self._ask("ticket", ticket_id)

    async def tickets(self, limit: int) -> list[dict[str, Any]]:
        tickets: list[dict[str, Any]] = await self._handle.tickets.remote(limit)
        return tickets

    async def status(self) -> dict[str, Any]:
        return await self._ask("status")

    async def metrics(self) -> list[Metric]:
        families: list[Metric] = await self._handle.metrics.remote()
        return families

    async def _ask(self, method: str, *args: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await getattr(self._handle, method).remote(*args)
        return answer


async def ask(question: Awaitable[_T], wait_s: float = 0) -> _T:
    """The Switchboard's answer; its own errors come back as they were raised there.

    `wait_s`: how long the answer itself may wait for something.

    Raises:
        Unavailable: it can not be reached.
        BackendError: what it raised.
    """
    try:
        async with asyncio.timeout(wait_s + ANSWER_S):
            return await question
    except RayTaskError as exc:
        if isinstance(exc.cause, BackendError):
            raise exc.cause from None
        raise
    except (RayError, RayServeException, TimeoutError) as exc:
        raise Unavailable("The Switchboard is restarting.", retry_after_s=2) from exc
