"""One engine process as its replica sees it: starts it, waits until it is ready, stops it.

The engine runs under `supervisor.py`. This side holds the supervisor's standard input: closing it,
or dying, ends the engine. The supervisor's end is the proof that nothing of it is left.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil

from deployments.engine import gpu_lock, imports, supervisor
from deployments.engine.args import MemoryShare, engine_environment, engine_flags
from deployments.engine.client import engine_session, is_healthy
from deployments.engine.environment import base_environment
from deployments.engine.events import EngineFailed
from deployments.engine.forkserver import ForkServerError, request_engine, socket_path
from deployments.host import logs
from deployments.residency import Problem
from deployments.settings import ModelSpec, paths

_POLL_S = 0.05
# For what takes a second at most (a tokenizer is read) where the cores are free, and twenty times
# that where other programs have them.
_STANDBY_TIMEOUT_S = 60.0
_SCRIPT_TIMEOUT_S = 60.0
_HEALTH_TIMEOUT_S = 10.0
_CLEARED_S = 60.0  # from an engine's SIGKILL until its supervisor gives the place up
# A line of a traceback, printed or logged; not a warning, nor one that only quotes an error.
_ERROR_LINE = re.compile(
    r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^\]\n]*\] )?([\w.]*(?:Error|Exception|Interrupt): .{3,})$",
    re.MULTILINE,
)
# What a serving engine is known to die of, by its log's own lines, and what is said of it: clients'
# text gets into that log too, so none of it is repeated.
_KNOWN_CAUSES = (
    (r"torch\.(?:cuda\.)?OutOfMemoryError: ", "the GPU's memory was full"),
    (r"torch\.AcceleratorError: |RuntimeError: CUDA error: ", "the GPU reported an error"),
    (r"MemoryError$", "the host's memory was full"),
)

logger = logging.getLogger("llm_backend.model_server")


class EngineProcess:
    """A running engine; made by `start`, over when `ended` is set."""

    def __init__(self, spec: ModelSpec, epoch: int, home: Path, *, can_sleep: bool = False) -> None:
        self.spec = spec
        self.epoch = epoch  # of its last load or waking
        self._can_sleep = can_sleep
        self.pid = 0
        self.is_forked = False  # from the standby
        self.ended = asyncio.Event()
        self._was_ready = False
        self.exit_code: int | None = None
        self._home = home
        self.socket = home / paths.engine_socket(spec.name, epoch)
        self._lock_file = home / paths.gpu_lock(spec.name if can_sleep else None)
        self._log = home / paths.log(spec.name)
        self._log_offset = 0
        self._stop_pipe = -1
        self._reader: asyncio.Task[None] | None = None

    async def start(
        self,
        checkpoint: Path,
        device: str,
        *,
        grace_s: float,
        memory: MemoryShare | None = None,
        by_standby: bool = True,
    ) -> None:
        """Take the place and start the process; returns once it runs, long before it is ready.

        `grace_s`: the engine's time between SIGTERM and SIGKILL when it is stopped.
        `memory`: its part of the card, from the memory plan.
        `by_standby`: fork it from the standby, where one listens.

        Raises:
            EngineFailed: the place is taken, or the process could not be started.
        """
        lock_fd = await gpu_lock.acquire(self._lock_file, timeout_s=grace_s + _CLEARED_S)
        try:
            self._prepare_files()
            own = engine_flags(
                self.spec, checkpoint, device, can_sleep=self._can_sleep, memory=memory
            )
            flags = [f"--uds={self.socket}", *own]
            environment = self._environment(device)
            try:
                if not by_standby:
                    raise ForkServerError("a plain start is wanted")
                await self._start_by_standby(checkpoint, flags, environment, grace_s, lock_fd)
                self.is_forked = True
            except ForkServerError:
                await self._start_by_script(flags, environment, grace_s, lock_fd)
        finally:
            os.close(lock_fd)

    async def _start_by_standby(
        self,
        checkpoint: Path,
        flags: list[str],
        environment: dict[str, str],
        grace_s: float,
        lock_fd: int,
    ) -> None:
        request = {
            "flags": flags,
            "checkpoint": str(checkpoint),
            "runner": "pooling" if self.spec.task == "embed" else "generate",
            "environment": environment,
            "grace_s": grace_s,
            "log": str(self._log),
        }
        with _Pipes() as pipes:
            fds = [pipes.stop_read, pipes.status_write, lock_fd]
            standby_pid = request_engine(socket_path(self._home), request, fds)
            try:
                await self._follow(pipes, _STANDBY_TIMEOUT_S)
            except ForkServerError:
                # What was sent to one that hangs has the lock of the place with it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(standby_pid, signal.SIGKILL)
                raise

    async def _start_by_script(
        self, flags: list[str], environment: dict[str, str], grace_s: float, lock_fd: int
    ) -> None:
        command = [sys.executable, "-m", "deployments.engine.main", *flags]
        script = [sys.executable, "-I", "-S", supervisor.__file__]
        with _Pipes() as pipes:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [*script, str(grace_s), str(lock_fd), str(self._log), "--", *command],
                stdin=pipes.stop_read,
                stdout=pipes.status_write,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
                env=environment,
                pass_fds=[lock_fd],
            )
            await asyncio.to_thread(process.wait)  # its first fork is gone at once
            try:
                await self._follow(pipes, _SCRIPT_TIMEOUT_S)
            except ForkServerError as exc:
                message = "the engine's supervisor did not start"
                raise EngineFailed(Problem("engine_ended", message)) from exc

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
        self._was_ready = True

    async def is_answering(self) -> bool:
        """Whether `GET /health` on the engine's socket answers 200."""
        async with engine_session(self.socket, _HEALTH_TIMEOUT_S) as session:
            return await is_healthy(session)

    async def sleep(self, timeout_s: float) -> None:
        """Give the GPU's memory back and keep the weights in the host's (vLLM's level 1).

        Raises:
            EngineFailed: it is not asleep within `timeout_s`.
        """
        await self._turn("/sleep?level=1&mode=wait", True, timeout_s)

    async def wake(self, timeout_s: float) -> None:
        """Raises EngineFailed: it is not awake within `timeout_s`."""
        await self._turn("/wake_up", False, timeout_s)

    async def _turn(self, path: str, is_asleep: bool, timeout_s: float) -> None:
        """Have it go to sleep or wake, and believe only what it says of itself afterwards."""
        what = "asleep" if is_asleep else "awake"
        problem = Problem(f"not_{what}", f"the engine of {self.spec.target} is not {what}")
        try:
            async with engine_session(self.socket, timeout_s) as session:
                async with session.post(path) as response:
                    response.raise_for_status()
                async with session.get("/is_sleeping") as response:
                    says = (await response.json())["is_sleeping"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError) as exc:
            raise EngineFailed(problem) from exc
        if says is not is_asleep:
            raise EngineFailed(problem)

    async def stop(self) -> None:
        """End the engine and wait until nothing of it is left."""
        self._close_stop_pipe()
        await self.ended.wait()

    def kill(self) -> None:
        """End a stuck engine at once; its supervisor clears what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def why_ended(self) -> Problem:
        """Its exit code or signal, and (1) the last error that it logged before it was ready, as no
        client had written to its log then, or (2) one of the known causes."""
        code = self.exit_code
        how = "ended" if not code else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
        cause = self._known_cause() if self._was_ready else self._last_error_line()
        detail = f": {cause}" if cause else ""
        return Problem("engine_ended", f"the engine of {self.spec.name} {how}{detail}")

    def _prepare_files(self) -> None:
        for folder in (self.socket.parent, self._log.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        whose = self.spec.name if self._can_sleep else "*"  # all whose place is ours now are dead
        for dead in self.socket.parent.glob(f"{whose}-[0-9]*.sock"):
            dead.unlink(missing_ok=True)
        self._log_offset = 0
        try:  # an engine runs without a log, too
            logs.keep_bounded(self._log)
            with self._log.open("a") as log:
                self._log_offset = log.tell()
                log.write(f"=== {self.spec.name}, epoch {self.epoch} ===\n")
        except OSError as exc:
            logger.warning("the log %s cannot be written: %s", self._log, exc.strerror)

    def _environment(self, device: str) -> dict[str, str]:
        # By default below TMPDIR, which an engine has for itself and which ends with it.
        compiled = {
            "TORCHINDUCTOR_CACHE_DIR": str(self._home / paths.COMPILED),
            imports.VARIABLE: str(self._home / paths.IMPORTS),
        }
        own = engine_environment(self.spec, device, can_sleep=self._can_sleep)
        return compiled | base_environment() | own

    async def _follow(self, pipes: "_Pipes", timeout_s: float) -> None:
        """Read the supervisor's lines; returns once the engine's pid is known.

        Raises:
            ForkServerError: no supervisor spoke; closing the pipes tells one that comes late.
        """
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipes.take_status_read(), "rb")
        )
        pipes.close_far_ends()
        try:
            first = await asyncio.wait_for(reader.readline(), timeout_s)
        except TimeoutError:
            first = b""
        if not first:
            transport.close()
            raise ForkServerError("no answer")
        status = json.loads(first)
        self.pid = status["pid"]
        self._stop_pipe = pipes.take_stop_write()
        try:
            gpu_lock.note_holder(
                self._lock_file,
                model=self.spec.name,
                epoch=self.epoch,
                supervisor=status["supervisor"],
                session=self.pid,
            )
        except OSError as exc:  # it only tells others whose the place is; the lock is held
            logger.warning("%s cannot be written: %s", self._lock_file, exc.strerror)
        self._reader = loop.create_task(self._read_to_end(reader))

    async def _read_to_end(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.exit_code = json.loads(line).get("exit")
        if self.exit_code is None:  # the supervisor was killed, so the engine has to be ended here
            await asyncio.to_thread(self._kill_session)
        self._close_stop_pipe()
        self.socket.unlink(missing_ok=True)
        self.ended.set()

    def _kill_session(self) -> None:
        while members := gpu_lock.session_members(self.pid):
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

    def log_text(self) -> str:
        """What this engine has logged; nothing where that cannot be read."""
        try:
            return self._read_log()
        except OSError:
            return ""

    def _read_log(self) -> str:
        with self._log.open("rb") as log:
            has_begun_anew = log.seek(0, os.SEEK_END) < self._log_offset  # see `keep_logs_bounded`
            log.seek(0 if has_begun_anew else self._log_offset)
            return log.read().decode(errors="replace")

    def _last_error_line(self) -> str:
        found = _ERROR_LINE.findall(self.log_text()[-200_000:])
        # the engine core's error is the cause; what the API server says of it comes after
        causes = [line for line in found if "See root cause" not in line]
        return causes[-1][:300] if causes else ""

    def _known_cause(self) -> str:
        log = self.log_text()[-200_000:]
        for pattern, cause in _KNOWN_CAUSES:
            line = rf"^\(EngineCore pid=\d+\) (?:ERROR [^\]\n]*\] )?(?:{pattern})"
            if re.search(line, log, re.MULTILINE):
                return cause
        return ""


class _Pipes:
    """The two pipes to a supervisor; an end that was not taken is closed."""

    def __init__(self) -> None:
        self._status_read, self.status_write = os.pipe()
        self.stop_read, self._stop_write = os.pipe()

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_far_ends()
        for fd in (self._status_read, self._stop_write):
            if fd >= 0:
                os.close(fd)

    def take_status_read(self) -> int:
        fd, self._status_read = self._status_read, -1
        return fd

    def take_stop_write(self) -> int:
        fd, self._stop_write = self._stop_write, -1
        return fd

    def close_far_ends(self) -> None:
        """Close the supervisor's ends here, so that only the supervisor holds them."""
        for fd in (self.status_write, self.stop_read):
            if fd >= 0:
                os.close(fd)
        self.status_write = self.stop_read = -1
