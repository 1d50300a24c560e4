"""A server whose place is the stub's card, on which engines and a user's programs hold memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.server import Server, beside
from tests.rehearsal.driver import DESKTOP, Card, DriverStub, Process

ENGINE_MIB = 12_900  # of qwen-14b on the card


@dataclass
class Studio:
    """A server on a machine whose card holds what its engines and the user's programs hold."""

    driver: DriverStub
    server: Server
    programs: tuple[Process, ...] = DESKTOP
    engine_mib: int = ENGINE_MIB
    opens_when_free: Process | None = None  # the moment an engine's memory is free, it takes it
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, *programs: Process) -> None:
        """Beside the desktop, these run now, and no others."""
        with self._lock:
            self.programs = (*DESKTOP, *programs)
            self._write(self._engines())

    def _engines(self) -> list[Process]:
        engines = self.server.watch().engines().values()
        return [Process(ps[0].pid, "VLLM::EngineCore", self.engine_mib, "C") for ps in engines]

    def _write(self, engines: list[Process]) -> None:
        self.driver.write(Card(processes=(*self.programs, *engines)))

    def _follow(self) -> None:
        while not self._stop.wait(0.05):
            with self._lock:
                engines = self._engines()
                if self.opens_when_free and not engines:
                    self.programs = (*DESKTOP, self.opens_when_free)
                    self.opens_when_free = None
                self._write(engines)

    @contextmanager
    def followed(self) -> Iterator["Studio"]:
        """The card is kept in step with the engines that live."""
        self.run()
        with beside(self._follow, self._stop):
            yield self

    def ticket(self, ticket_id: str) -> dict[str, Any]:
        return self.server.get(f"/admin/switch/{ticket_id}")

    def gpu(self) -> dict[str, Any]:
        return self.server.get("/admin/status")["gpu"]
