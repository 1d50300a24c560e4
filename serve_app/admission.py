"""The gateway's half of residency: who is admitted to which engine, and who waits.

The gateway never asks anybody before it admits a request. It follows the Switchboard's view; while
the view says that the wanted model serves, a request is counted under that epoch and sent. When the
epoch drains, nobody is admitted under it any more, and the count going to zero is reported. All
decisions here are plain functions, so on one event loop each is atomic.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from deployments.residency import State
from deployments.view import FailedLoad, GatewayNews, View, WaitingAges
from serve_app.errors import DeadlineExceeded, ModelLoadFailed, ModelSwitching, Overloaded
from serve_app.settings import Limits


@dataclass(eq=False)
class Permit:
    """The right to send one request to the engine of one epoch, until it is released."""

    model: str
    epoch: int
    endpoint: str
    queued_s: float  # from arrival to admission
    limit: asyncio.Timeout | None = None  # set by whoever forwards; a cut makes it expire at once
    is_cut: bool = False

    def cut(self) -> None:
        """End the request: the drain deadline has passed."""
        self.is_cut = True
        if self.limit:
            with suppress(RuntimeError):  # it ends by itself just now
                self.limit.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False)
class _Waiter:
    model: str
    arrived_at: float
    last_failure: int  # the newest failure of its model when it came
    admitted: asyncio.Future[Permit]


@dataclass
class Admission:
    """In-flight and waiting requests of one gateway."""

    limits: Limits
    gateway: str
    view: View | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # there is news to report
    _in_flight: set[Permit] = field(default_factory=set)
    _waiters: deque[_Waiter] = field(default_factory=deque)
    _failed_at: dict[int, float] = field(default_factory=dict)  # failure's seq -> when first seen
    _service_s: float = 1.0  # average time in service, for Retry-After
    _num_news: int = 0

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_queued(self) -> int:
        return len(self._waiters)

    def apply(self, view: View) -> None:
        """Act on a new view: cut, refuse and admit."""
        now = time.monotonic()
        if self.view and self.view.boot != view.boot:
            self._failed_at.clear()  # another boot counts its failures anew
            for waiter in self._waiters:
                waiter.last_failure = 0
        self.view = view
        for known in view.failures.values():
            self._failed_at.setdefault(known.seq, now)
        if view.is_cut:
            for permit in self._in_flight:
                if permit.epoch == view.epoch and not permit.is_cut:
                    permit.cut()
        for waiter in list(self._waiters):
            failure = view.failures.get(waiter.model)
            if failure and failure.seq > waiter.last_failure:
                self._drop(waiter)
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(_load_failed(waiter.model, failure))
        self._admit_waiters()
        self.changed.set()

    async def admit(self, model: str, deadline: float) -> Permit:
        """A permit for `model`, at once or when its turn comes.

        `deadline`: in the event loop's time.

        Raises:
            Overloaded: too many wait already.
            ModelLoadFailed: its load failed, just now or while this request waited.
            DeadlineExceeded: its turn did not come in time.
        """
        arrived_at = time.monotonic()
        if self._can_admit(model) and not any(w.model == model for w in self._waiters):
            return self._permit(model, arrived_at)
        waiter = self._enqueue(model, arrived_at)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter.admitted
        except TimeoutError:
            self._give_back(waiter)
            raise DeadlineExceeded(f"{model} did not become available in time.") from None
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise
        finally:
            self._drop(waiter)

    def release(self, permit: Permit, service_s: float) -> None:
        """The request has ended, however."""
        self._in_flight.discard(permit)
        self._service_s = 0.9 * self._service_s + 0.1 * service_s
        self._admit_waiters()
        self._note_change()

    def news(self) -> GatewayNews:
        """What the Switchboard is to know."""
        now = time.monotonic()
        self._num_news += 1
        in_flight: dict[int, int] = {}
        for permit in self._in_flight:
            in_flight[permit.epoch] = in_flight.get(permit.epoch, 0) + 1
        waiting: dict[str, WaitingAges] = {}
        for waiter in self._waiters:  # in order of arrival: the first of a model is its oldest
            have = waiting.get(waiter.model, WaitingAges(0, now - waiter.arrived_at))
            waiting[waiter.model] = WaitingAges(have.num_requests + 1, have.oldest_age_s)
        closed = self.view.closed_epoch if self.view else -1
        return GatewayNews(self.gateway, self._num_news, closed, in_flight, waiting)

    def retry_after_s(self) -> float:
        """When a place in the queue may be free: what waits, at the pace of late."""
        return 1 + self._service_s * len(self._waiters) / self.limits.max_in_service

    def _can_admit(self, model: str) -> bool:
        view = self.view
        return (
            view is not None
            and view.state is State.SERVING
            and view.holder == model
            and len(self._in_flight) < self.limits.max_in_service
        )

    def _permit(self, model: str, arrived_at: float) -> Permit:
        assert self.view is not None
        assert self.view.endpoint is not None
        queued_s = time.monotonic() - arrived_at
        permit = Permit(model, self.view.epoch, self.view.endpoint, queued_s)
        self._in_flight.add(permit)
        return permit

    def _enqueue(self, model: str, arrived_at: float) -> _Waiter:
        failure = self.view.failures.get(model) if self.view else None
        if failure and self._is_fresh(failure, arrived_at):
            raise _load_failed(model, failure)
        if len(self._waiters) >= self.limits.max_queued:
            raise Overloaded(
                f"The queue is full: {len(self._waiters)} requests wait.",
                retry_after_s=self.retry_after_s(),
            )
        admitted: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(model, arrived_at, failure.seq if failure else 0, admitted)
        self._waiters.append(waiter)
        self._note_change()
        return waiter

    def _is_fresh(self, failure: FailedLoad, now: float) -> bool:
        return now < self._failed_at[failure.seq] + failure.retry_after_s

    def _admit_waiters(self) -> None:
        for waiter in list(self._waiters):
            if self._can_admit(waiter.model):
                self._drop(waiter)
                if not waiter.admitted.done():
                    waiter.admitted.set_result(self._permit(waiter.model, waiter.arrived_at))

    def _give_back(self, waiter: _Waiter) -> None:
        """Release the permit of one who left just as it was admitted."""
        future = waiter.admitted
        if future.done() and not future.cancelled() and future.exception() is None:
            self.release(future.result(), 0)

    def _drop(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self.changed.set()  # also the last one's going: nobody may switch for it any more

    def _note_change(self) -> None:
        """Report only when somebody acts on it: during a switch, or when somebody waits."""
        if self._waiters or self.view is None or self.view.state is not State.SERVING:
            self.changed.set()


def _load_failed(model: str, failure: FailedLoad) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"{model} could not be loaded: {failure.message}", "model", failure.retry_after_s
    )


def switching_error(permit: Permit) -> ModelSwitching:
    """What a request is told that was cut by a drain deadline."""
    return ModelSwitching(
        f"The backend is switching away from {permit.model}; this answer was cut.",
        retry_after_s=5,
    )
