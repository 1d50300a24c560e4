"""Renews a lease while it is held."""

import asyncio
import getpass
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serve_app.client.errors import LeaseHeld, LLMError
from serve_app.client.transport import Deadline, Transport

_END_S = 10.0
_RETRY_S = 2.0

_number = itertools.count(1)
logger = logging.getLogger("llm_backend.client")


@dataclass
class HeldLease:
    """A lease that this client holds. `lost`: why it ended early; None while it is held."""

    model: str
    owner: str
    seconds: float
    task: str | None = None
    lost: str | None = None


def lease_body(model: str, seconds: float, owner: str, task: str | None) -> dict[str, Any]:
    """Return the body of `POST /admin/lease`."""
    body = {"model": model, "seconds": seconds, "owner": owner}
    return body | ({"task": task} if task else {})


def unique_owner() -> str:
    """Return an owner that users can read (user, host, process) and that no other lease has."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}.{next(_number)}"


@asynccontextmanager
async def hold(
    transport: Transport, held: HeldLease, take: Callable[[], Awaitable[object]]
) -> AsyncIterator[HeldLease]:
    """Hold the lease that `take` requests until the `async with` block ends.

    An admin's switch to another model ends the lease; it is not taken again then.
    """
    try:
        await take()
        renewing = asyncio.create_task(_renew(transport, held))
        try:
            yield held
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
    finally:
        await _end(transport, held)


async def _renew(transport: Transport, held: HeldLease) -> None:
    """Renew the lease each time a third of its time has passed, until it is lost."""
    body = lease_body(held.model, held.seconds, held.owner, held.task)
    pause_s = held.seconds / 3
    while held.lost is None:
        await transport.clock.sleep(pause_s)
        deadline = Deadline(transport.clock, held.seconds / 3)
        try:
            if await _is_ours(transport, held, deadline):
                await transport.ask("POST", "/admin/lease", deadline, json=body)
            else:
                held.lost = "an admin switched to another model, or the model could not be kept"
        except LeaseHeld as exc:
            held.lost = exc.message
        except LLMError as exc:  # the lease is valid for two thirds of its time yet
            logger.warning("the lease of %s could not be renewed: %s", held.model, exc)
            pause_s = min(_RETRY_S, held.seconds / 3)
            continue
        pause_s = held.seconds / 3
    logger.warning("the lease of %s is lost: %s", held.model, held.lost)


async def _end(transport: Transport, held: HeldLease) -> None:
    """End the lease if this client still holds it. If the backend is unreachable, it expires."""
    deadline = Deadline(transport.clock, _END_S)
    try:
        if await _is_ours(transport, held, deadline):
            await transport.ask("DELETE", "/admin/lease", deadline)
    except LLMError as exc:
        logger.warning(
            "the lease of %s could not be ended and expires in at most %g s: %s",
            held.model,
            held.seconds,
            exc,
        )


async def _is_ours(transport: Transport, held: HeldLease, deadline: Deadline) -> bool:
    status: dict[str, Any] = await transport.ask("GET", "/admin/status", deadline)
    lease = status.get("lease") or {}
    return bool(lease.get("owner") == held.owner)
