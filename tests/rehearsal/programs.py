"""Programs on the machine of a driver stub, and how a test talks with them.

Each is a process, because a library is found where LD_LIBRARY_PATH pointed when its process began.
Run as `python -m tests.rehearsal.programs NAME ARGUMENT…`; what each prints is a line of JSON.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 30.0


class Program(ExitStack):
    """One of the programs below, from its start to the end of a `with`."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__()
        self.process = self.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.rehearsal.programs", name, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # so that `select` sees all that is not read yet
                cwd=PROJECT,
                env=dict(environment),
            )
        )
        self.callback(self.process.kill)  # before it is waited for

    def line(self, deadline_s: float = DEADLINE_S) -> Any:
        """The next line that it prints."""
        assert self.process.stdout
        line, end = b"", time.monotonic() + deadline_s
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            assert ready, f"nothing within {deadline_s:.0f} s but {line!r}"
            more = self.process.stdout.read(1)
            assert more, f"it has ended with {self.process.wait()}, after {line!r}"
            line += more
        return json.loads(line)

    def ask(self) -> Any:
        """The answer to a line on its standard input."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        return self.line()

    def until(self, is_it: Callable[[Any], bool], deadline_s: float = DEADLINE_S) -> Any:
        """The first line from now on that is meant."""
        end = time.monotonic() + deadline_s
        while not is_it(line := self.line(max(end - time.monotonic(), 0))):
            pass
        return line

    def output(self, deadline_s: float = DEADLINE_S) -> tuple[int, str]:
        """Its exit code and everything it printed, once it has ended."""
        output, _ = self.process.communicate(timeout=deadline_s)
        return self.process.returncode, output.decode()


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def reader() -> None:
    """A look at the card for each line of the standard input, as the watch takes it: opened anew
    after a failure."""
    from deployments.memory.nvml import GpuReadError, open_nvml

    card = None
    for _ in sys.stdin:
        try:
            card = card or open_nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
            _tell(
                **asdict(card.read()),
                capability=card.compute_capability(),
                cuda=card.cuda_version(),
            )
        except GpuReadError as exc:
            card = None
            _tell(problem=str(exc))


def ray() -> None:
    """What a cluster that starts here would have."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Nvidia

    _tell(
        num_gpus=Nvidia.get_current_node_num_accelerators(),
        kind=Nvidia.get_current_node_accelerator_type(),
    )


def watch(interval_s: str = "0.01", answer_s: str = "1") -> None:
    """The states of the watch on the card, each that differs from the one before. An engine became
    ready at the first."""
    from deployments.memory import gpu_watch
    from deployments.memory.nvml import open_nvml
    from deployments.settings import GpuSettings

    gpu_watch._ANSWER_S = float(answer_s)

    async def run() -> None:
        settings = GpuSettings(alarm_at=0.95, interval_s=float(interval_s))
        last = None
        card = gpu_watch.GpuWatch(settings, lambda: open_nvml(None), lambda: 1)
        async for state in card.states():
            if state != last:
                _tell(**gpu_watch.gpu_admin_json(state))
            last = state

    asyncio.run(run())


def place(needed_gib: str, timeout_s: str) -> None:
    """The proof that memory of the card is free: what is free at each look, then the verdict."""
    from deployments.engine.events import EngineFailed
    from deployments.memory.gpu_wait import open_card, wait_until_memory_freed
    from deployments.memory.nvml import GpuReading

    card, needed_bytes = open_card(None), float(needed_gib) * 2**30
    assert card
    read = card.read

    def told() -> GpuReading:
        reading = read()
        _tell(free_bytes=reading.free_bytes)
        return reading

    card.read = told  # type: ignore[method-assign]
    try:
        look = asyncio.run(wait_until_memory_freed(card, needed_bytes, float(timeout_s)))
        _tell(proved_bytes=look and look.free_bytes)
    except EngineFailed as exc:
        _tell(code=exc.problem.code, message=exc.problem.message)


def preflight(config: str) -> None:
    """All that is checked before a start."""
    from serve_app.launcher.preflight import PreflightError, check_all

    try:
        _tell(profile=check_all(Path(config)).profile)
    except PreflightError as exc:
        _tell(message=str(exc))


def command(*arguments: str) -> None:
    """`llm-backend`, which here reads no `.env`."""
    from deployments.settings import environment

    environment.ENV_FILE = Path("/nonexistent/.env")
    from serve_app.cli import main

    sys.argv = ["llm-backend", *arguments]
    main()


_PROGRAMS = (reader, ray, watch, place, preflight, command)

if __name__ == "__main__":
    from deployments.memory import nvml

    nvml._ANSWER_S = float(os.environ.get("REHEARSAL_ANSWER_S", nvml._ANSWER_S))
    {program.__name__: program for program in _PROGRAMS}[sys.argv[1]](*sys.argv[2:])
