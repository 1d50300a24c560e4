"""Calls the Switchboard, and turns its refusals into HTTP errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.switchboard.deployment import Switchboard
from deployments.switchboard.errors import (
    LeaseHeldError,
    SwitchboardError,
    UnknownTargetError,
    UnknownTicketError,
)
from serve_app.protocol.errors import (
    BackendError,
    LeaseRefused,
    NotFound,
    Unavailable,
    UnknownModel,
)

ANSWER_S = 10.0  # a call to a deployment with no replica would wait for ever

# As which error a client is told of it, and which field is wrong.
_TOLD: dict[type[SwitchboardError], tuple[type[BackendError], str]] = {
    UnknownTargetError: (UnknownModel, "model"),
    UnknownTicketError: (NotFound, "ticket"),
    LeaseHeldError: (LeaseRefused, "model"),
}

_T = TypeVar("_T")


class _Remote:
    """Whatever is called is called on the deployment behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            return await getattr(self._handle, method).remote(*args)

        return call


def behind(handle: DeploymentHandle) -> Switchboard:
    """The Switchboard through its deployment handle; its calls take arguments by position."""
    return cast(Switchboard, _Remote(handle))


async def ask(question: Awaitable[_T], wait_s: float = 0) -> _T:
    """The Switchboard's answer; what it refuses is raised as the error that a client is told.

    `wait_s`: how long the answer itself may wait for something.

    Raises:
        Unavailable: it cannot be reached.
        UnknownModel, NotFound, LeaseRefused: it refuses.
    """
    try:
        async with asyncio.timeout(wait_s + ANSWER_S):
            return await question
    except (SwitchboardError, RayTaskError) as exc:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if not isinstance(cause, SwitchboardError):
            raise
        kind, field = _TOLD[type(cause)]
        raise kind(str(cause), field) from None
    except (RayError, RayServeException, TimeoutError) as exc:
        raise Unavailable("The Switchboard is restarting.", retry_after_s=2) from exc
