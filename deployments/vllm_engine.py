"""One engine process, seen from the replica that owns it: start, wait until ready, stop, proof.

The engine runs under `supervisor.py`. This side holds the supervisor's standard input: closing it,
or dying, ends the engine. The supervisor's end is the proof that nothing of it is left.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil

from deployments import place, supervisor
from deployments.engine import EngineFailed
from deployments.engine_args import engine_environment, engine_flags
from deployments.residency import Problem
from serve_app.settings import ModelSpec

_ENGINE_SITE = Path(__file__).parent / "engine_site"
_LOG_LIMIT_BYTES = 20_000_000  # then the log is set aside once as <name>.log.1
_POLL_S = 0.05
_DROPPED = {"OMP_NUM_THREADS"}  # Ray sets it to 1 in its workers; vLLM chooses for itself
_ERROR_LINE = re.compile(r"\b(\w*(?:Error|Exception|Interrupt)): (.{3,})")


class VllmEngine:
    """A running engine; made by `start`, over when `ended` is set."""

    def __init__(self, spec: ModelSpec, epoch: int, home: Path) -> None:
        self.spec = spec
        self.epoch = epoch
        self.pid = 0
        self.ended = asyncio.Event()
        self.exit_code: int | None = None
        self.socket = home / "run" / f"{spec.name}-{epoch}.sock"
        self._lock_file = home / "run" / "place.lock"
        self._log = home / "logs" / f"{spec.name}.log"
        self._log_offset = 0
        self._stop_pipe = -1
        self._reader: asyncio.Task[None] | None = None

    async def start(self, checkpoint: Path, device: str, *, grace_s: float) -> None:
        """Take the place and start the process; returns once it runs, long before it is ready.

        `grace_s`: what the engine gets between SIGTERM and SIGKILL when it is stopped.

        Raises:
            EngineFailed: the place is taken, or the process could not be started.
        """
        lock_fd = await place.take_place(self._lock_file, timeout_s=10)
        self._prepare_files()
        command = [sys.executable, "-m", "deployments.engine_main", f"--uds={self.socket}"]
        command += engine_flags(self.spec, checkpoint, device)
        status_read, status_write = os.pipe()
        stop_read, self._stop_pipe = os.pipe()
        arguments = [str(grace_s), str(lock_fd), str(self._log), "--", *command]
        try:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-I", "-S", supervisor.__file__, *arguments],
                stdin=stop_read,
                stdout=status_write,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parent.parent,
                env=self._environment(device),
                pass_fds=[lock_fd],
            )
            await asyncio.to_thread(process.wait)  # its first fork is gone at once
        finally:
            for fd in (status_write, stop_read, lock_fd):
                os.close(fd)
        await self._follow(status_read)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the engine's own health check answers.

        Raises:
            EngineFailed: it ended, or the time is over.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await self.is_answering():
            if asyncio.get_running_loop().time() > deadline:
                raise EngineFailed(
                    Problem("load_timeout", f"{self.spec.name} was not ready in {timeout_s:.0f} s")
                )
            try:
                await asyncio.wait_for(self.ended.wait(), _POLL_S)
            except TimeoutError:
                continue
            raise EngineFailed(self.why_ended())

    async def is_answering(self) -> bool:
        """Whether `GET /health` on the engine's socket answers 200 within a second."""
        timeout = aiohttp.ClientTimeout(total=1)
        connector = aiohttp.UnixConnector(path=str(self.socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get("http://engine/health") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def stop(self) -> None:
        """End the engine and wait until nothing of it is left."""
        self._close_stop_pipe()
        await self.ended.wait()

    def why_ended(self) -> Problem:
        """The engine's own last error line, else its exit code."""
        code = self.exit_code
        how = f"was killed by signal {-code}" if code is not None and code < 0 else "ended"
        line = self._last_error_line()
        detail = f": {line}" if line else f" with exit code {code}" if code else ""
        return Problem("engine_ended", f"the engine of {self.spec.name} {how}{detail}")

    def _prepare_files(self) -> None:
        for folder in (self.socket.parent, self._log.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.unlink(missing_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        with self._log.open("a") as log:
            log.write(f"=== {self.spec.name}, epoch {self.epoch} ===\n")
            self._log_offset = log.tell()

    def _environment(self, device: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(_ENGINE_SITE), os.environ.get("PYTHONPATH")]))
        inherited = {k: v for k, v in os.environ.items() if k not in _DROPPED}
        return inherited | engine_environment(self.spec, device) | {"PYTHONPATH": path}

    async def _follow(self, status_fd: int) -> None:
        """Read the supervisor's lines; returns once the engine's pid is known."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status_fd, "rb")
        )
        first = await reader.readline()
        if not first:
            self._close_stop_pipe()
            raise EngineFailed(Problem("engine_ended", "the engine's supervisor did not start"))
        status = json.loads(first)
        self.pid = status["pid"]
        place.note_holder(
            self._lock_file,
            model=self.spec.name,
            epoch=self.epoch,
            supervisor=status["supervisor"],
            session=self.pid,
        )
        self._reader = loop.create_task(self._read_to_end(reader))

    async def _read_to_end(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.exit_code = json.loads(line).get("exit")
        if self.exit_code is None:  # the supervisor was killed; nobody else ends the engine
            await asyncio.to_thread(self._kill_session)
        self._close_stop_pipe()
        self.socket.unlink(missing_ok=True)
        self.ended.set()

    def _kill_session(self) -> None:
        while members := place.session_members(self.pid):
            for process in members:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in members:
                with contextlib.suppress(psutil.Error):  # the loop looks again
                    process.wait(timeout=1)

    def _close_stop_pipe(self) -> None:
        if self._stop_pipe >= 0:
            os.close(self._stop_pipe)
            self._stop_pipe = -1

    def _last_error_line(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_offset)
            text = log.read()[-200_000:].decode(errors="replace")
        found = _ERROR_LINE.findall(text)
        # the engine core's error is the cause; what the API server says of it comes after
        causes = [f"{kind}: {what}" for kind, what in found if "See root cause" not in what]
        return causes[-1][:300] if causes else ""
