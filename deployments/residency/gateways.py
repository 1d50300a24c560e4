"""Counts the requests in flight and waiting, as the gateways report them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.residency.switch_rule import Demand


@dataclass(frozen=True)
class Waiting:
    """The requests of one gateway that wait for one model."""

    num_requests: int
    oldest_age_s: float  # how long the oldest of them had waited when the report was made


@dataclass(frozen=True)
class GatewayReport:
    """The counts of one gateway; a later `seq` replaces an earlier one.

    It crosses a process border, where clocks differ: times are ages in seconds.
    """

    gateway: str
    seq: int
    closed_epoch: int  # the gateway admits no more requests under this epoch and older ones
    in_flight: dict[int, int] = field(default_factory=dict)  # epoch -> number of requests
    waiting: dict[str, Waiting] = field(default_factory=dict)  # model -> the requests for it
    last_active_age_s: float | None = None  # seconds since a request was in flight; None: never


@dataclass
class _Gateway:
    last_seen: float
    report: GatewayReport
    reported_at: float = -math.inf

    def is_busy(self, epoch: int, holder: str | None) -> bool:
        return bool(self.report.in_flight.get(epoch)) or holder in self.report.waiting


@dataclass
class GatewayLedger:
    """All living gateways. One that is silent for `ttl_s` is gone, and its requests with it."""

    ttl_s: float
    last_active: float = -math.inf  # when a request was last in flight, or waited for the holder
    all_known_at: float = -math.inf  # by then every living gateway has called
    _gateways: dict[str, _Gateway] = field(default_factory=dict)

    def expect_unknown(self, now: float) -> None:
        """Allow for gateways that have not called yet and may have requests in flight."""
        self.all_known_at = now + self.ttl_s

    def watch(self, now: float, gateway: str) -> None:
        """Note a gateway that is about to get the present state; it may admit from now on."""
        known = self._gateways.get(gateway)
        if known:
            known.last_seen = now
        else:  # perhaps not new: after a silence it may still have requests in flight
            self._gateways[gateway] = _Gateway(now, GatewayReport(gateway, -1, -1))

    def report(self, now: float, report: GatewayReport, epoch: int, holder: str | None) -> None:
        """Take a gateway's counts, unless a later report came before this one."""
        known = self._gateways.get(report.gateway)
        if known and report.seq <= known.report.seq:
            return
        new = self._gateways[report.gateway] = _Gateway(now, report, now)
        if new.is_busy(epoch, holder) or (known and known.is_busy(epoch, holder)):
            self.last_active = now
        elif report.last_active_age_s is not None:
            self.last_active = max(self.last_active, now - report.last_active_age_s)

    def forget_silent(self, now: float) -> None:
        for name in [n for n, g in self._gateways.items() if now >= g.last_seen + self.ttl_s]:
            del self._gateways[name]

    def in_flight(self, epoch: int) -> int:
        """Requests in flight under `epoch`."""
        return sum(g.report.in_flight.get(epoch, 0) for g in self._gateways.values())

    def waiting(self) -> dict[str, Demand]:
        """Model -> the requests of all gateways that wait for it."""
        total: dict[str, Demand] = {}
        for gateway in self._gateways.values():
            for model, waiting in gateway.report.waiting.items():
                since = gateway.reported_at - waiting.oldest_age_s
                have = total.get(model, Demand(model, since, 0))
                num_requests = have.num_requests + waiting.num_requests
                total[model] = Demand(model, min(have.since, since), num_requests)
        return {model: demand for model, demand in total.items() if demand.num_requests}

    def num_open(self, epoch: int) -> int:
        """Gateways that may still admit requests under `epoch`."""
        return sum(g.report.closed_epoch < epoch for g in self._gateways.values())

    def is_drained(self, now: float, epoch: int) -> bool:
        """Whether no request is in flight under `epoch` and no gateway can admit another."""
        is_over = not self.num_open(epoch) and not self.in_flight(epoch)
        return is_over and now >= self.all_known_at

    def idle_since(self, epoch: int, holder: str) -> float | None:
        """When a request last used the holder, -inf if none did; None while one uses it."""
        if any(gateway.is_busy(epoch, holder) for gateway in self._gateways.values()):
            return None
        return max(self.last_active, self.all_known_at)

    def have_reported_since(self, at: float) -> bool:
        """Whether each gateway has reported at `at` or later."""
        return all(gateway.reported_at >= at for gateway in self._gateways.values())

    def deadlines(self) -> Iterator[float]:
        """When each gateway will be gone, if it stays silent."""
        for gateway in self._gateways.values():
            yield gateway.last_seen + self.ttl_s
