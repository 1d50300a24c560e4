"""Judges whether an engine that owes an answer is slow or dead. Pure.

A slow engine works or tries to: its threads run, wait for a core that other programs use, or wait
for a disk. A dead engine (stopped, or with every thread blocked) does none of these. So no time
limit on answers is needed to tell them apart, and a machine that is busy with other programs ends
no engine. Time alone ends only an engine that works without progress, as in an endless loop.
"""

from dataclasses import dataclass

from deployments.residency import Problem

# Shares of the time between two looks. A blocked engine's helper threads use far less than the
# first. An engine that tries to work uses all of the time, even if other programs have the cores.
_STILL_SHARE = 0.02
_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Look:
    """What one look at an engine found."""

    at: float  # seconds of a monotonic clock
    # Counts that change with each step of the engine; None if its API server did not answer.
    counts: tuple[float, ...] | None
    is_owing: bool  # requests wait or run, or the known question is not answered yet
    # Seconds that the threads ran or waited for a core or a disk since the last look.
    server_s: float  # in the API server
    core_s: float  # in the other processes, which compute


class Judge:
    """Takes the looks at one engine in order, and says when it has stopped working."""

    def __init__(self, still_after_s: float, stuck_after_s: float) -> None:
        self._still_after_s, self._stuck_after_s = still_after_s, stuck_after_s
        self._last: Look | None = None
        self._counts: tuple[float, ...] | None = None
        self._moved_at = 0.0  # when the engine last made progress or owed nothing
        self._core_worked_at = self._server_worked_at = 0.0

    def problem(self, look: Look) -> Problem | None:
        """What is wrong after this look; None if nothing is. (1) The API server neither answers nor
        works. (2) The engine owes an answer and does not work. (3) It works without progress."""
        last, self._last = self._last, look
        if last is None:
            self._counts = look.counts
            self._moved_at = self._core_worked_at = self._server_worked_at = look.at
            return None
        passed_s = look.at - last.at
        has_counts = look.counts is not None
        has_moved = has_counts and look.counts != self._counts
        if has_counts:
            self._counts = look.counts
        if has_moved or (has_counts and not look.is_owing):
            self._moved_at = self._core_worked_at = look.at
        # A busy API server may not have passed the request to the core yet.
        if look.core_s >= _STILL_SHARE * passed_s or look.server_s >= _BUSY_SHARE * passed_s:
            self._core_worked_at = look.at
        if has_counts or look.server_s >= _STILL_SHARE * passed_s:
            self._server_worked_at = look.at
        if look.at - self._server_worked_at >= self._still_after_s:  # (1)
            return Problem("engine_mute", _idle("does not answer", self._still_after_s))
        if has_counts and look.at - self._core_worked_at >= self._still_after_s:  # (2)
            return Problem("engine_stuck", _idle("owes an answer", self._still_after_s))
        if look.at - self._moved_at >= self._stuck_after_s:  # (3)
            message = (
                f"the engine is busy but has produced no token for {self._stuck_after_s:.0f} s"
            )
            return Problem("engine_stuck", message)
        return None


def _idle(sign: str, seconds: float) -> str:
    return f"the engine {sign} and has done nothing for {seconds:.0f} s"
