"""Calls the Switchboard and translates its errors for HTTP clients."""

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

ANSWER_S = 10.0  # without a limit, a call to a deployment that has no replica waits for ever

# The Switchboard's error -> the client's error, and the field of the request that is wrong.
_CLIENT_ERRORS: dict[type[SwitchboardError], tuple[type[BackendError], str]] = {
    UnknownTargetError: (UnknownModel, "model"),
    UnknownTicketError: (NotFound, "ticket"),
    LeaseHeldError: (LeaseRefused, "model"),
}

_T = TypeVar("_T")


class _Remote:
    """Forwards each method call to the deployment behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            return await getattr(self._handle, method).remote(*args)

        return call


def behind(handle: DeploymentHandle) -> Switchboard:
    """Return the Switchboard behind a deployment handle; its methods take positional arguments."""
    return cast(Switchboard, _Remote(handle))


async def ask(call: Awaitable[_T], wait_s: float = 0) -> _T:
    """Await a call to the Switchboard; translate its refusal into the error for the client.

    `wait_s`: how long the Switchboard itself may wait before it answers.

    Raises:
        Unavailable: the Switchboard cannot be reached.
        UnknownModel, NotFound, LeaseRefused: the Switchboard refuses the call.
    """
    try:
        async with asyncio.timeout(wait_s + ANSWER_S):
            return await call
    except (SwitchboardError, RayTaskError) as exc:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if not isinstance(cause, SwitchboardError):
            raise
        kind, field = _CLIENT_ERRORS[type(cause)]
        raise kind(str(cause), field) from None
    except (RayError, RayServeException, TimeoutError) as exc:
        raise Unavailable(
            "The Switchboard cannot be reached; it may be restarting.", retry_after_s=2
        ) from exc
