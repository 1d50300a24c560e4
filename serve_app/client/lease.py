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
    """A lease as its holder sees it. `lost`: why it ended early, None while it stands."""

    model: str
    owner: str
    seconds: float
    task: str | None = None
    lost: str | None = None


def lease_body(model: str, seconds: float, owner: str, task: str | None) -> dict[str, Any]:
    """The body of `POST /admin/lease`."""
    body = {"model": model, "seconds": seconds, "owner": owner}
    return body | ({"task": task} if task else {})


def unique_owner() -> str:
    """Name this use of this process for people who see the lease; no other lease has the name."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}.{next(_number)}"


@asynccontextmanager
async def hold(
    line: Transport, held: HeldLease, take: Callable[[], Awaitable[object]]
) -> AsyncIterator[HeldLease]:
    """The lease that `take` asks for, for the length of a `with`.

    An admin's switch to another model ends a lease for good: it is not taken again.
    """
    try:
        await take()
        renewing = asyncio.create_task(_renew(line, held))
        try:
            yield held
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
    finally:
        await _end(line, held)


async def _renew(line: Transport, held: HeldLease) -> None:
    """Ask for the lease anew at each third of its time, while it still stands."""
    body = lease_body(held.model, held.seconds, held.owner, held.task)
    pause_s = held.seconds / 3
    while held.lost is None:
        await line.clock.sleep(pause_s)
        deadline = Deadline(line.clock, held.seconds / 3)
        try:
            if await _is_ours(line, held, deadline):
                await line.ask("POST", "/admin/lease", deadline, json=body)
            else:
                held.lost = "an admin has switched, or the model could not be kept"
        except LeaseHeld as exc:
            held.lost = exc.message
        except LLMError as exc:  # it stands for two thirds of its time yet
            logger.warning("the lease of %s is not renewed: %s", held.model, exc)
            pause_s = min(_RETRY_S, held.seconds / 3)
            continue
        pause_s = held.seconds / 3
    logger.warning("the lease of %s is lost: %s", held.model, held.lost)


async def _end(line: Transport, held: HeldLease) -> None:
    """End the lease where it is still ours; unreachable, it ends with its time."""
    deadline = Deadline(line.clock, _END_S)
    try:
        if await _is_ours(line, held, deadline):
            await line.ask("DELETE", "/admin/lease", deadline)
    except LLMError as exc:
        logger.warning("the lease of %s ends with its time only: %s", held.model, exc)


async def _is_ours(line: Transport, held: HeldLease, deadline: Deadline) -> bool:
    status: dict[str, Any] = await line.ask("GET", "/admin/status", deadline)
    lease = status.get("lease") or {}
    return bool(lease.get("owner") == held.owner)
