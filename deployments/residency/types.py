"""The plain values of the machine: states, phases, causes, policy and effects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """The state of the GPU's place, which holds one engine."""

    EMPTY = "empty"  # no engine
    LOADING = "loading"  # an engine is starting
    VERIFYING = "verifying"  # an engine is up and its answer to the known question is checked
    SERVING = "serving"  # requests for the holder are admitted
    DRAINING = "draining"  # the holder finishes its requests; no new request is admitted
    LOST = "lost"  # the holder's engine died, and its remains are not cleared yet
    UNLOADING = "unloading"  # an engine is ending


class TicketState(StrEnum):
    """A ticket's state as clients see it. It follows from the ticket's phase."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self not in (TicketState.QUEUED, TicketState.RUNNING)


class Phase(StrEnum):
    """The steps of a switch."""

    QUEUED = "queued"
    PREPARING = "preparing"
    DRAINING = "draining"
    UNLOADING = "unloading"
    LOADING = "loading"
    VERIFYING = "verifying"
    READY = "ready"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"

    @property
    def state(self) -> TicketState:
        """The state of a ticket in this phase."""
        return _STATES.get(self, TicketState.RUNNING)

    @property
    def is_last(self) -> bool:
        return self.state.is_over


_STATES = {
    Phase.QUEUED: TicketState.QUEUED,
    Phase.READY: TicketState.DONE,
    Phase.ROLLED_BACK: TicketState.ROLLED_BACK,
    Phase.FAILED: TicketState.FAILED,
}


class Cause(StrEnum):
    """Why a switch is made."""

    START = "start"  # the default model, after a start
    ADMIN = "admin"
    LEASE = "lease"  # an owner leases the model
    REQUEST = "request"  # requests wait for the model
    IDLE = "idle"  # no request has used the model for its idle time
    RECOVERY = "recovery"  # the engine died
    RETRY = "retry"  # a failed load is tried again


@dataclass(frozen=True)
class Problem:
    """Why something failed. `message` is one sentence that is safe to show to clients."""

    code: str
    message: str


GOLDEN_MISMATCH = "golden_mismatch"  # the code of the problem that earns an engine one restart


@dataclass(frozen=True)
class Policy:
    """Durations in seconds; see `configs/backend.yaml`."""

    drain_timeout_s: float
    max_wait_s: float
    min_resident_s: float
    probation_s: float
    failed_retry_s: float
    load_timeout_s: float = 600.0  # for preparing a model, and for loading and verifying it
    cut_grace_s: float = 5.0  # a gateway has this long to report its cut requests as ended
    # A gateway that is silent for this long is gone, and its requests with it. A switch waits this
    # long for a gateway that was killed. A gateway calls every five seconds; with ten busy loops on
    # each core it took three seconds more.
    gateway_ttl_s: float = 20.0
    retry_limit_s: float = 300.0  # the doubling pause between retries stops growing here
    idle_unload_s: Mapping[str, float] = field(default_factory=dict)  # model -> seconds unused


@dataclass(frozen=True)
class Prepare:
    """Make every check that needs no GPU. Answer: `Prepared` or `PreparationRefused`."""

    ticket_id: str
    model: str


class UnloadMode(StrEnum):
    """How an engine leaves the place."""

    SLEEP = "sleep"  # drained normally: in warm mode the engine is put to sleep, not stopped
    STOP = "stop"  # the engine is stopped
    STOP_ALL = "stop_all"  # the engine is stopped, and so is every engine that sleeps


@dataclass(frozen=True)
class Unload:
    """Take this engine out of the place and wait until it is gone, but not for ever. Answer:
    `EngineUnloaded`."""

    epoch: int
    model: str
    mode: UnloadMode


@dataclass(frozen=True)
class Load:
    """Start an engine. Answers: `EngineVerifying`, then `EngineReady`; `EngineLost` at any time."""

    epoch: int
    model: str


Effect = Prepare | Unload | Load
