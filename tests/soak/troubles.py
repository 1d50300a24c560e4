"""What befalls the server in a soak: a switch every half minute, a part killed, its cores taken."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.cluster import victims
from tests.cluster.ledger import Ledger
from tests.cluster.server import Server
from tests.soak.clients import TEXT_MODELS, VISION, World

EVERY_S = 30.0
LOOPS_PER_CORE = 4
_MODELS = (*TEXT_MODELS, VISION)


@dataclass
class Troubles:
    server: Server
    world: World
    ledger: Ledger  # its `front_kills` and `controller_kills` are everybody's
    choose: random.Random
    kills: list[tuple[float, str]] = field(default_factory=list)  # by the wall clock
    switches: Counter[str] = field(default_factory=Counter)
    tickets: list[dict[str, Any]] = field(default_factory=list)  # those that failed
    num_taken: int = 0  # times that the cores were

    def run(self) -> None:
        """Until the soak stops: each half minute a switch, and then a kill, busy cores, or rest."""
        turns = ["rest", "kill", "rest", "cores", "kill"]
        number = 0
        while not self.world.stop.is_set():
            ends_at = time.monotonic() + EVERY_S
            self._switch()
            match turns[number % len(turns)]:
                case "kill":
                    self.world.stop.wait(self.choose.uniform(0, 5))
                    self._kill()
                case "cores":
                    with busy_cores():
                        self.num_taken += 1
                        self.world.stop.wait(self.choose.uniform(20, 30))
            number += 1
            self.world.stop.wait(max(0, ends_at - time.monotonic()))

    def _switch(self) -> None:
        model = self.choose.choice([name for name in _MODELS if name != self.world.resident])
        try:
            with self.server.http as http:
                answer = http.post("/admin/switch", json={"model": model, "wait": True})
        except httpx.HTTPError as exc:
            self.switches["cut by a kill"] += 1
            self.ledger.note_broken(exc)
            return
        self.ledger.counts["admin"] += 1
        state = answer.json().get("state", str(answer.status_code))
        self.switches[state] += 1
        if state == "done":
            self.world.resident = model
        else:
            self.tickets.append(answer.json())

    def _kill(self) -> None:
        """One part, whichever is there; a part that is just being started again cannot be."""
        for part in self.choose.sample(victims.PARTS, len(victims.PARTS)):
            if self.world.stop.is_set() or not victims.find(self.server, part):
                continue
            if part in victims.FRONT:
                self.ledger.front_kills.append(time.monotonic())
            elif part == "controller":
                self.ledger.controller_kills.append(time.monotonic())
            victims.kill(self.server, part)
            self.kills.append((time.time(), part))
            return


@contextmanager
def busy_cores() -> Iterator[None]:
    """Loops that take all the time there is, as another program on the machine would."""
    num = LOOPS_PER_CORE * len(os.sched_getaffinity(0))
    loop = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(loop) for _ in range(num)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()
