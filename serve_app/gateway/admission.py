"""Decides which request the gateway admits to the engine, which waits and which is refused.

Admission is decided locally, with no call to the Switchboard per request. The gateway follows the
Switchboard's view; while the view says that a request's model serves, the gateway counts the
request under that epoch and sends it. When the epoch drains, the gateway admits no more requests
under it, and reports when their count reaches zero. All decisions here are plain functions, so on
one event loop each is atomic.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from deployments.residency import Failure, GatewayReport, State, Waiting
from deployments.settings import Limits
from deployments.switchboard.messages import LeaseView, View
from serve_app.protocol.errors import (
    BackendError,
    DeadlineExceeded,
    Leased,
    ModelLoadFailed,
    ModelNotResident,
    ModelSwitching,
    Overloaded,
)

_DEFAULT_RETRY_AFTER_S = 5.0  # while no switch with an estimated end runs


class OnAbsent(StrEnum):
    """What the gateway does if the model of a request is not resident (`X-Switch`)."""

    NEVER = "never"  # refuse the request
    WAIT = "wait"  # let the request wait for a switch
    FORCE = "force"  # start a switch that cuts requests in flight, then let the request wait


# Waits for the given future; a stream's sends heartbeats meanwhile.
Wait = Callable[[asyncio.Future[None]], Awaitable[None]]


@dataclass(frozen=True)
class AdmissionRequest:
    """A request's terms of admission. Both deadlines are in the event loop's time."""

    model: str
    deadline: float  # of the whole request
    intent: OnAbsent
    wait_deadline: float  # of the wait for admission; not later than `deadline`
    known_failure: int  # the model's newest failure; a forced request is not refused for it


@dataclass(eq=False)
class Slot:
    """The right to send one request to the engine of one epoch, until the request ends."""

    model: str
    epoch: int
    endpoint: str
    admitted_at: float
    queued_s: float  # from arrival to admission
    switch_s: float  # duration of the switch that the request waited for; 0: it waited for none
    limit: asyncio.Timeout | None = None  # set by the relay; `cut` makes it expire at once
    is_cut: bool = False

    def cut(self) -> None:
        """End the request: the drain deadline has passed."""
        self.is_cut = True
        if self.limit:
            with suppress(RuntimeError):  # the request is ending by itself just now
                self.limit.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False)
class _Waiter:
    request: AdmissionRequest
    arrived_at: float
    epoch: int | None  # the epoch that was admitting at arrival
    last_failure: int  # the newest failure of its model at arrival
    decided: asyncio.Future[None]  # done once one of the next two is set
    slot: Slot | None = None
    refusal: BackendError | None = None

    @property
    def model(self) -> str:
        return self.request.model


@dataclass
class Admission:
    """Holds the in-flight and waiting requests of one gateway, and admits or refuses them."""

    limits: Limits
    gateway: str
    view: View | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a report is due
    _in_flight: set[Slot] = field(default_factory=set)
    _waiters: deque[_Waiter] = field(default_factory=deque)
    _failed_at: dict[int, float] = field(default_factory=dict)  # failure's seq -> when first seen
    _service_s: float = 1.0  # average time in service, for Retry-After
    _num_reports: int = 0
    _active_at: float | None = None  # when a request was last in flight

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_queued(self) -> int:
        return len(self._waiters)

    def is_resident(self, model: str) -> bool:
        """Whether requests for `model` go to an engine now."""
        view = self.view
        return view is not None and view.state is State.SERVING and view.holder == model

    def serving_epoch(self, model: str) -> int | None:
        """The epoch in which `model` serves; None if it does not serve."""
        return self.view.epoch if self.view and self.is_resident(model) else None

    def last_failure(self, model: str) -> int:
        """The number of the model's newest failure; 0: none."""
        failure = self.view.failures.get(model) if self.view else None
        return failure.seq if failure else 0

    def apply(self, view: View) -> None:
        """Act on a new view: cut, refuse and admit."""
        now = time.monotonic()
        if self.view and self.view.boot != view.boot:
            self._failed_at.clear()  # another boot of the Switchboard numbers its failures anew
            for waiter in self._waiters:
                waiter.last_failure = 0
        self.view = view
        for known in view.failures.values():
            self._failed_at.setdefault(known.seq, now)
        if view.is_cut:
            for slot in self._in_flight:
                if slot.epoch == view.epoch and not slot.is_cut:
                    slot.cut()
        for waiter in list(self._waiters):
            waiter.refusal = self._refusal(waiter.request, waiter.last_failure)
            if waiter.refusal:
                self._drop(waiter)
                waiter.decided.set_result(None)
        self._admit_waiters()
        self.changed.set()

    @asynccontextmanager
    async def admit(self, request: AdmissionRequest, wait: Wait) -> AsyncIterator[Slot]:
        """Hold a slot for the request during the block, immediately or when its turn comes.

        Raises:
            Overloaded: the queue is full, or no slot became free in time.
            ModelLoadFailed: its model's load failed, recently or while the request waited.
            Leased: another model has a lease.
            ModelNotResident: the request does not wait for a switch, or not that long.
            DeadlineExceeded: its turn did not come before the request's deadline.
        """
        waiter = self._arrive(request)
        try:
            yield waiter.slot or await self._wait_for_turn(waiter, wait)
        finally:  # also if the client left, or the time ended, at the moment of admission
            self._drop(waiter)
            if waiter.slot:
                self._release(waiter.slot)

    def report(self) -> GatewayReport:
        """Return the counts that the Switchboard decides on."""
        now = time.monotonic()
        self._num_reports += 1
        in_flight: dict[int, int] = {}
        for slot in self._in_flight:
            in_flight[slot.epoch] = in_flight.get(slot.epoch, 0) + 1
        waiting: dict[str, Waiting] = {}
        for waiter in self._waiters:  # in order of arrival: a model's first waiter is its oldest
            have = waiting.get(waiter.model, Waiting(0, now - waiter.arrived_at))
            waiting[waiter.model] = Waiting(have.num_requests + 1, have.oldest_age_s)
        closed = self.view.closed_epoch if self.view else -1
        if self._in_flight:
            self._active_at = now
        idle_s = None if self._active_at is None else now - self._active_at
        return GatewayReport(self.gateway, self._num_reports, closed, in_flight, waiting, idle_s)

    def retry_after_s(self) -> float:
        """Estimate when the queue has room: the waiting requests times the recent service time."""
        return 1 + self._service_s * len(self._waiters) / self.limits.max_in_service

    def _can_admit(self, model: str) -> bool:
        return self.is_resident(model) and len(self._in_flight) < self.limits.max_in_service

    def _grant_slot(self, waiter: _Waiter, switch_s: float) -> None:
        assert self.view is not None
        assert self.view.endpoint is not None
        self._active_at = now = time.monotonic()
        waiter.slot = Slot(
            waiter.model,
            self.view.epoch,
            self.view.endpoint,
            now,
            now - waiter.arrived_at,
            switch_s,
        )
        self._in_flight.add(waiter.slot)

    def _release(self, slot: Slot) -> None:
        """Take the slot back after its request ended, in whatever way."""
        self._in_flight.discard(slot)
        self._active_at = now = time.monotonic()
        self._service_s = 0.9 * self._service_s + 0.1 * (now - slot.admitted_at)
        self._admit_waiters()
        self._note_change()

    def _arrive(self, request: AdmissionRequest) -> _Waiter:
        """Admit or enqueue the request. Raises the reason if it can do neither."""
        epoch = self.view.admitting_epoch if self.view else None
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(
            request, time.monotonic(), epoch, self.last_failure(request.model), decided
        )
        if self._can_admit(request.model) and not any(
            w.model == request.model for w in self._waiters
        ):
            self._grant_slot(waiter, 0)
        else:
            self._enqueue(waiter)
        return waiter

    def _enqueue(self, waiter: _Waiter) -> None:
        request = waiter.request
        failure = self.view.failures.get(request.model) if self.view else None
        is_known = request.intent is OnAbsent.FORCE and waiter.last_failure <= request.known_failure
        if failure and self._is_fresh(failure, waiter.arrived_at) and not is_known:
            raise _load_failed(request.model, failure)
        refusal = self._refusal(request, waiter.last_failure)
        if refusal is None and request.wait_deadline <= asyncio.get_running_loop().time():
            refusal = self._too_late(request)  # now, so that no switch starts for it
        if refusal:
            raise refusal
        if len(self._waiters) >= self.limits.max_queued:
            raise Overloaded(
                f"The queue is full: {len(self._waiters)} requests wait.",
                retry_after_s=self.retry_after_s(),
            )
        self._waiters.append(waiter)
        self._note_change()

    async def _wait_for_turn(self, waiter: _Waiter, wait: Wait) -> Slot:
        """Wait for the decision and return the slot. Raises the reason if it is a refusal."""
        try:
            async with asyncio.timeout_at(waiter.request.wait_deadline):
                await wait(waiter.decided)
        except TimeoutError:
            raise self._too_late(waiter.request) from None
        if waiter.refusal:
            raise waiter.refusal
        assert waiter.slot
        return waiter.slot

    def _is_fresh(self, failure: Failure, now: float) -> bool:
        return now < self._failed_at[failure.seq] + failure.retry_after_s

    def _refusal(self, request: AdmissionRequest, last_failure: int) -> BackendError | None:
        """Return the reason why a request cannot wait, or cannot wait any longer; else None.

        (1) Its model's load failed after failure number `last_failure`. (2) Another model has a
        lease, which only an admin's switch ends. (3) The client does not want to wait for a switch.
        While its model is resident, (2) and (3) do not apply: it may wait for a slot.
        """
        view = self.view
        failure = view.failures.get(request.model) if view else None
        if failure and failure.seq > last_failure:  # (1)
            return _load_failed(request.model, failure)
        if self.is_resident(request.model):
            return None
        lease = view.lease if view else None
        if lease and lease.model != request.model and request.intent is not OnAbsent.FORCE:  # (2)
            # The view may still show a lease that has just expired.
            is_over = lease.until is not None and time.time() >= lease.until
            if not is_over:
                return _leased(request.model, lease)
        if request.intent is OnAbsent.NEVER:  # (3)
            return self._not_resident(request.model)
        return None

    def _too_late(self, request: AdmissionRequest) -> BackendError:
        """Return why the request was not admitted by its `wait_deadline`."""
        if request.wait_deadline == request.deadline:
            return DeadlineExceeded(
                f"{request.model} did not become available before the request timed out."
            )
        if self.is_resident(request.model):
            return Overloaded(
                f"{request.model} is resident but too busy: the request was not admitted within"
                " its maximum wait.",
                retry_after_s=self.retry_after_s(),
            )
        return self._not_resident(request.model)

    def _not_resident(self, model: str) -> ModelNotResident:
        """Return an error that names the resident model and the switch in progress, if any."""
        view = self.view
        switch = view.switch if view else None
        holder = view.holder if view and view.state in (State.SERVING, State.DRAINING) else None
        message = f"{model} is not resident; {holder or 'no model'} is"
        if switch:
            message += f", and a switch to {switch['to'] or 'no model'} is {switch['phase']}"
        retry_after_s = (switch or {}).get("estimate_s") or _DEFAULT_RETRY_AFTER_S
        return ModelNotResident(f"{message}.", "model", retry_after_s)

    def _admit_waiters(self) -> None:
        for waiter in list(self._waiters):
            if self._can_admit(waiter.model):
                assert self.view is not None
                self._drop(waiter)
                self._grant_slot(
                    waiter, 0 if self.view.epoch == waiter.epoch else self.view.switch_s
                )
                waiter.decided.set_result(None)

    def _drop(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self.changed.set()  # also after the last one: the Switchboard must not switch for it

    def _note_change(self) -> None:
        """Report only if the Switchboard acts on it: during a switch, or while requests wait."""
        if self._waiters or self.view is None or self.view.state is not State.SERVING:
            self.changed.set()


def _load_failed(model: str, failure: Failure) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"{model} could not be loaded: {failure.problem.message}", "model", failure.retry_after_s
    )


def _leased(model: str, lease: LeaseView) -> Leased:
    when = f"until {lease.ends_at}" if lease.ends_at else f"for {lease.seconds:g} s once it serves"
    return Leased(
        f"Cannot switch to {model}: {lease.model} is leased to {lease.owner} {when}.",
        "model",
        lease.seconds if lease.until is None else lease.until - time.time(),
    )


def switching_error(slot: Slot) -> ModelSwitching:
    """Return the error of a request that a drain deadline cut."""
    return ModelSwitching(
        f"The backend is switching away from {slot.model} and ended this request.",
        retry_after_s=5,
    )
