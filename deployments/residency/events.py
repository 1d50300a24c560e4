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
    """The server starts and no engine runs: the machine shall load `model`."""

    model: str


@dataclass(frozen=True)
class EngineAdopted(_Event):
    """The Switchboard restarted and found this engine serving.

    Gateways that have not reported yet may have requests in flight: a drain waits for them.
    """

    model: str
    epoch: int
    endpoint: str


@dataclass(frozen=True)
class SwitchRequested(_Event):
    """`target` shall be resident; None: no model.

    (1) `target` is resident and no switch runs: the answer is a ticket that is done. (2) A switch
    to the same target runs or is queued, and has not failed: the answer is its ticket. (3)
    Otherwise the answer is a new ticket, queued. An admin's switch away from the leased model ends
    the lease.
    """

    target: str | None
    cause: Cause
    drain_timeout_s: float | None = None  # None: the policy's


@dataclass(frozen=True)
class LeaseRequested(_Event):
    """`model` shall stay resident for `seconds` from when it serves; it is loaded if it is not.

    While the lease lasts, neither requests nor idleness unload the model. The lease ends with its
    time, with `LeaseEnded`, with an admin's switch to another model, or when a load of the model
    fails; the death of a serving engine does not end it. Switches requested before the lease are
    made before it. The same owner may change its lease; for another owner `handle` raises
    `LeaseHeld`.
    """

    model: str
    seconds: float
    owner: str


@dataclass(frozen=True)
class LeaseRestored(_Event):
    """The lease was granted before a restart of the Switchboard; its time may be over by now."""

    lease: Lease


@dataclass(frozen=True)
class LeaseEnded(_Event):
    """The owner gives the lease back, if there is one; its model stays until another is needed."""


@dataclass(frozen=True)
class GatewayWatched(_Event):
    """A gateway is about to get the present state; it may admit requests from now on."""

    gateway: str


@dataclass(frozen=True)
class GatewayReported(_Event):
    """A gateway reports its requests in flight and waiting."""

    report: GatewayReport


@dataclass(frozen=True)
class Prepared(_Event):
    """Every check of the running switch passed."""

    ticket_id: str


@dataclass(frozen=True)
class PreparationRefused(_Event):
    """A check of the running switch failed: the old model goes on serving."""

    ticket_id: str
    problem: Problem


@dataclass(frozen=True)
class EngineUnloaded(_Event):
    """The engine of `epoch` is gone."""

    epoch: int


@dataclass(frozen=True)
class EngineVerifying(_Event):
    """The engine of `epoch` is up and gets its known question."""

    epoch: int


@dataclass(frozen=True)
class EngineReady(_Event):
    """The engine of `epoch` gave the right answer: it serves."""

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
