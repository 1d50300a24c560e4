"""What the parts that answer a request notice of it, for whoever counts at its end."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Observation:
    """One request's; each field is set where it becomes known."""

    target: str | None = None  # the model it is for, with the task; a known one
    queued_s: float | None = None  # from arrival to admission
    error_code: str | None = None  # of one of our own errors


_current: ContextVar[Observation | None] = ContextVar("observation", default=None)


def begin_observation() -> Observation:
    """From here on `observation` is this one, in this task and those that it starts."""
    observed = Observation()
    _current.set(observed)
    return observed


def observation() -> Observation:
    """The present request's; outside of one, an observation that nobody reads."""
    return _current.get() or Observation()
