"""What happens to the machine: one value for each event."""

from dataclasses import dataclass

from deployments.residency.gateways import GatewayReport
from deployments.residency.leases import Lease
from deployments.residency.types import Cause, Problem


@dataclass(frozen=True)
class _Event:
    at: float  # seconds of the machine's clock


@dataclass(frozen=True)
class Started(_Event):
    """The server starts with nothing running: `model` is to be loaded."""

    model: str


@dataclass(frozen=True)
class EngineAdopted(_Event):
    """The Switchboard restarts and finds this engine serving.

    Gateways that it has not heard of yet may have requests in flight: a drain waits for them.
    """

    model: str
    epoch: int
    endpoint: str


@dataclass(frozen=True)
class SwitchRequested(_Event):
    """`target` (None: nothing) is to be resident.

    (1) It is so, and no switch is under way: the answer is a ticket that is done. (2) A switch to
    the same target is under way or queued, and has not failed: the answer is its ticket. (3) Else
    the answer is a new ticket, queued. An admin's switch away from the leased model ends the lease.
    """

    target: str | None
    cause: Cause
    drain_timeout_s: float | None = None  # None: the policy's


@dataclass(frozen=True)
class LeaseRequested(_Event):
    """`model` is to stay resident for `seconds` from when it serves, and is loaded if need be.

    While the lease stands neither requests nor idleness unload the model. It ends with its time,
    with `LeaseEnded`, with an admin's switch to another model, or when a load of the model fails;
    the death of a serving engine does not end it. Switches requested before it are made before it.
    The same owner may change its lease; another owner gets `LeaseHeld`.
    """

    model: str
    seconds: float
    owner: str


@dataclass(frozen=True)
class LeaseRestored(_Event):
    """This lease was granted before a restart; its time may be over by now."""

    lease: Lease


@dataclass(frozen=True)
class LeaseEnded(_Event):
    """The lease, if one stands, is given back; its model stays until another is wanted."""


@dataclass(frozen=True)
class GatewayWatched(_Event):
    """A gateway is about to learn the present state; it may admit from now on."""

    gateway: str


@dataclass(frozen=True)
class GatewayReported(_Event):
    """A gateway says what it has in flight and waiting."""

    report: GatewayReport


@dataclass(frozen=True)
class Prepared(_Event):
    """No check speaks against the running switch."""

    ticket_id: str


@dataclass(frozen=True)
class PreparationRefused(_Event):
    """The running switch cannot succeed: the old model goes on serving."""

    ticket_id: str
    problem: Problem


@dataclass(frozen=True)
class EngineUnloaded(_Event):
    """The engine of `epoch` is gone."""

    epoch: int


@dataclass(frozen=True)
class EngineVerifying(_Event):
    """The engine of `epoch` is up and is asked its known question."""

    epoch: int


@dataclass(frozen=True)
class EngineReady(_Event):
    """The engine of `epoch` answered rightly: it serves."""

    epoch: int
    endpoint: str


@dataclass(frozen=True)
class EngineLost(_Event):
    """The engine of `epoch` failed or died."""

    epoch: int
    problem: Problem


@dataclass(frozen=True)
class Ticked(_Event):
    """Time has passed: a deadline may be due."""


Event = (
    Started
    | EngineAdopted
    | SwitchRequested
    | LeaseRequested
    | LeaseRestored
    | LeaseEnded
    | GatewayWatched
    | GatewayReported
    | Prepared
    | PreparationRefused
    | EngineUnloaded
    | EngineVerifying
    | EngineReady
    | EngineLost
    | Ticked
)
