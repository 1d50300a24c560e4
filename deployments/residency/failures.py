"""Remembers failed loads, and when a model or an empty GPU may be tried again."""

from dataclasses import dataclass, field

from deployments.residency.types import Problem


@dataclass(frozen=True)
class Failure:
    """The last failed load of a model, while it has not succeeded since."""

    seq: int  # grows with each failure of any model: the later failure has the larger number
    problem: Problem
    failed_at: float  # in the machine's time
    retry_after_s: float  # seconds after `failed_at`; then requests may cause another load

    @property
    def retry_at(self) -> float:
        return self.failed_at + self.retry_after_s


@dataclass
class FailureLog:
    """The failures, and the pause between tries to fill an empty place, which doubles each time."""

    pause_s: float
    pause_limit_s: float
    by_model: dict[str, Failure] = field(default_factory=dict)
    next_retry: float | None = None  # when the desired model is tried again
    _num_failures: int = 0
    _num_retries: int = 0

    def record(self, now: float, model: str, problem: Problem) -> None:
        self._num_failures += 1
        self.by_model[model] = Failure(self._num_failures, problem, now, self.pause_s)

    def forget(self, model: str) -> None:
        """Note that the model has been loaded."""
        self.by_model.pop(model, None)

    def may_try(self, now: float, model: str) -> bool:
        """Whether a request may cause a load of `model`."""
        failure = self.by_model.get(model)
        return failure is None or now >= failure.retry_at

    def backoff(self, now: float) -> None:
        """Plan the next try, after twice the pause before the last one: the place stays empty."""
        pause_s = self.pause_s * 2.0 ** min(self._num_retries, 32)
        self.next_retry = now + min(pause_s, self.pause_limit_s)
        self._num_retries += 1

    def reset_backoff(self) -> None:
        """Let the next pause be the shortest again: an engine has worked."""
        self._num_retries = 0
