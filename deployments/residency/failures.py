"""Remembers failed loads, and when a model or an empty GPU may be tried again."""

from dataclasses import dataclass, field

from deployments.residency.types import Problem


@dataclass(frozen=True)
class Failure:
    """The last failed load of a model, while it has not succeeded since."""

    seq: int  # grows with each failure of any model: tells whether one came before or after
    problem: Problem
    failed_at: float  # in the machine's time
    retry_after_s: float  # from then on requests may make it be tried again

    @property
    def retry_at(self) -> float:
        return self.failed_at + self.retry_after_s


@dataclass
class FailureLog:
    """The failures, and the doubling pause between tries to fill an empty place."""

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
        """The model has been loaded."""
        self.by_model.pop(model, None)

    def may_try(self, now: float, model: str) -> bool:
        """Whether a request may have `model` loaded."""
        failure = self.by_model.get(model)
        return failure is None or now >= failure.retry_at

    def backoff(self, now: float) -> None:
        """The place stays empty: plan the next try, each after twice the pause of the last."""
        pause_s = self.pause_s * 2.0 ** min(self._num_retries, 32)
        self.next_retry = now + min(pause_s, self.pause_limit_s)
        self._num_retries += 1

    def reset_backoff(self) -> None:
        """An engine has worked: the next pause is a short one."""
        self._num_retries = 0
