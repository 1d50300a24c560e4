"""Writes down every event of the residency machine, so that an incident can be replayed.

A line holds models, owners, problems, counts and times: no prompt and no answer.
"""

import logging
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from deployments.host import logs
from deployments.residency import Event, Residency
from deployments.residency.records import to_json
from deployments.settings import paths

_NUM_BETWEEN = 1000  # events between two copies of the machine's whole state


class EventLog:
    """Keeps the events as JSON lines: the last ones in memory, more in `logs/residency.jsonl`.

    The machine's whole state comes first, and again after every `_NUM_BETWEEN` events: a replay can
    begin there when older lines are gone. If the disk is full, lines are lost and the service goes
    on.
    """

    def __init__(self, home: Path, machine: Residency) -> None:
        self._machine = machine
        self._num_events = 0
        self._file = logs.rotating_file(home / paths.RESIDENCY_EVENTS)
        self._file.setFormatter(logging.Formatter("%(message)s"))
        self.last_lines: deque[str] = deque(maxlen=2 * _NUM_BETWEEN)  # always with a whole state

    def write(self, event: Event) -> None:
        """Write an event that the machine is about to take."""
        if self._num_events % _NUM_BETWEEN == 0:
            self._put(self._machine)
        self._num_events += 1
        self._put(event)

    def close(self) -> None:
        self._file.close()

    def _put(self, value: Event | Residency) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = to_json(value, time=now, boot=self._machine.tickets.boot)
        self.last_lines.append(line)
        self._file.handle(logging.makeLogRecord({"msg": line}))
