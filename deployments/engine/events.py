"""The engine seam: the events that a model server sends the Switchboard while it runs an engine.

A model's replica answers `hold(epoch)` with a stream of these values that stays open as long as
the engine lives; its end, or the call's failure, means that the engine is gone. So readiness, the
engine's death and the replica's death all reach the Switchboard through one call.
"""

from dataclasses import dataclass, field
from typing import Literal

from deployments.residency import Problem

# Forked from the standby, started plainly, or woken where it slept.
StartWay = Literal["standby", "exec", "wake"]


@dataclass(frozen=True)
class EngineStarted:
    """The engine's process runs."""

    pid: int
    way: StartWay
    free_bytes: int | None = None  # of the card before the start; None where it was not read


@dataclass(frozen=True)
class EngineVerifying:
    """It listens, and is asked its known question."""


@dataclass(frozen=True)
class EngineReady:
    """It answered rightly; `socket` is the path of its Unix socket, on this node."""

    socket: str
    context_tokens: int  # what it was started with
    steps: dict[str, float] = field(default_factory=dict)  # seconds of its load; see load_steps.py


@dataclass(frozen=True)
class EngineGone:
    """It ended, was stopped, or never became ready."""

    problem: Problem


@dataclass(frozen=True)
class EngineHeld:
    """What a replica tells a Switchboard that has restarted."""

    target: str
    epoch: int
    socket: str
    is_asleep: bool


EngineEvent = EngineStarted | EngineVerifying | EngineReady | EngineGone


class EngineFailed(Exception):
    """The engine cannot be started, or did not become ready."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem
