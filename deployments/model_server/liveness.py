"""Judges whether an engine that owes an answer is slow or dead. Pure.

A slow engine works or wants to: its threads run, wait for a core that other programs have, or wait
for a disk. A dead one (stopped, or every thread blocked) does none of these. So no time limit on an
answer is needed to tell them apart, and a machine that is busy with something else ends no engine.
Only one that works without ever moving on, as in an endless loop, is ended by time alone.
"""

from dataclasses import dataclass

from deployments.residency import Problem

# Of the time between two looks. A blocked engine's helper threads use far less, one that wants to
# work far more: all of it, whatever else uses the cores.
_STILL_SHARE = 0.02
_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Look:
    """What was seen of an engine at one moment, and since the look before."""

    at: float  # seconds of a monotonic clock
    # Counts that change with each step of it; None: its API server did not tell them.
    counts: tuple[float, ...] | None
    is_owing: bool  # requests wait for it, or run, or its known question is open
    # Seconds that any thread ran or waited for a core or a disk since the last look.
    server_s: float  # of its API server
    core_s: float  # of its other processes, which compute


class Judge:
    """Sees one engine's looks in order."""

    def __init__(self, still_after_s: float, stuck_after_s: float) -> None:
        self._still_after_s, self._stuck_after_s = still_after_s, stuck_after_s
        self._last: Look | None = None
        self._counts: tuple[float, ...] | None = None
        self._moved_at = 0.0  # it moved on, or owed nothing
        self._core_worked_at = self._server_worked_at = 0.0

    def problem(self, look: Look) -> Problem | None:
        """What is wrong by this look, if anything is: (1) its API server does not answer, and does
        nothing; (2) it owes an answer, and does nothing; (3) it works, and does not move on."""
        last, self._last = self._last, look
        if last is None:
            self._counts = look.counts
            self._moved_at = self._core_worked_at = self._server_worked_at = look.at
            return None
        passed_s = look.at - last.at
        is_told = look.counts is not None
        has_moved = is_told and look.counts != self._counts
        if is_told:
            self._counts = look.counts
        if has_moved or (is_told and not look.is_owing):
            self._moved_at = self._core_worked_at = look.at
        # A busy API server may not have handed the request on yet.
        if look.core_s >= _STILL_SHARE * passed_s or look.server_s >= _BUSY_SHARE * passed_s:
            self._core_worked_at = look.at
        if is_told or look.server_s >= _STILL_SHARE * passed_s:
            self._server_worked_at = look.at
        if look.at - self._server_worked_at >= self._still_after_s:  # (1)
            return Problem("engine_mute", _idle("does not answer", self._still_after_s))
        if is_told and look.at - self._core_worked_at >= self._still_after_s:  # (2)
            return Problem("engine_stuck", _idle("owes an answer", self._still_after_s))
        if look.at - self._moved_at >= self._stuck_after_s:  # (3)
            message = (
                f"the engine is busy but has produced no token for {self._stuck_after_s:.0f} s"
            )
            return Problem("engine_stuck", message)
        return None


def _idle(what: str, seconds: float) -> str:
    return f"the engine {what} and has done nothing for {seconds:.0f} s"
