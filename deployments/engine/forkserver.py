"""The fork server: a process that has imported everything an engine needs, and forks engines.

Two thirds of a start of vLLM are imports, the same ones in each of its processes. The standby does
them once: an engine forked from it is ready in a few seconds. It reads a checkpoint's tokenizer
when its first engine is asked for, and keeps it for the next ones. It touches no device and has one
thread, else it refuses to work, and it ends when it finds its packages or a tokenizer replaced.
A replica whose request it does not answer starts its engine plainly, and ends it. It lives as long
as its owner holds the other end of its standard input, a socket on which it says when it is ready;
engines outlive it. It has two owners: the launcher's begins its imports while Ray starts, and the
Switchboard's waits behind a lock for the end of that one.

A request is one message on its Unix socket: JSON, with three descriptors attached: the
supervisor's standard input and output (see `supervisor.py`) and the lock on the GPU's place.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from deployments.engine import imports, supervisor
from deployments.engine import main as engine_main
from deployments.engine.tokenizers import TokenizerCache
from deployments.settings import paths

_MAX_MESSAGE_BYTES = 1 << 20
_READY = b"ready\n"
_MESSAGE_S = 10.0  # for a message that takes no time where the cores are free
_RESTART_PAUSE_S = 30.0
_LOCK_RETRY_S = 0.5
_LISTENS_RETRY_S = 0.05
_PACKAGES = ("vllm", "torch", "transformers")  # of which an engine imports more later
_CUDA_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED of cuda.h
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy's OpenBLAS starts its threads when imported
    "TOKENIZERS_PARALLELISM": "false",
}


class ForkServerError(Exception):
    """There is no standby, or it does not take the request."""


def request_engine(path: Path, request: dict[str, Any], fds: list[int]) -> int:
    """Hand a start to the standby at `path`: its pid. The answer comes on the supervisor's output.

    Raises:
        ForkServerError: no fork server listens there.
    """
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(_MESSAGE_S)
        try:
            client.connect(str(path))
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            socket.send_fds(client, [message], fds)
        except OSError as exc:
            raise ForkServerError(str(exc)) from exc
    pid: int = _PEER.unpack(peer)[0]
    return pid


def start_fork_server(
    home: Path, environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start one for the server of `home`: the process, and the descriptor that keeps it alive."""
    log = home / paths.log("standby")
    path = socket_path(home)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    ours, theirs = socket.socketpair()
    with log.open("a") as output, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.engine.forkserver", str(path)],
            stdin=theirs.fileno(),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | _ONE_THREAD | {imports.VARIABLE: str(home / paths.IMPORTS)},
            cwd=Path(__file__).parents[2],
        )
    return process, ours.detach()


def socket_path(home: Path) -> Path:
    """Where the standby of the server of `home` listens."""
    return home / paths.STANDBY_SOCKET


class ForkServerKeeper:
    """Starts a standby, and another when it ends."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home = home
        self._environment = environment
        self._may_come = True  # False: the last one could not live

    async def run(self) -> None:
        """Runs until cancelled; the standby then sees its input end, and ends too."""
        while True:
            process, lifeline = await asyncio.to_thread(
                start_fork_server, self._home, self._environment
            )
            reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=lifeline))
            try:
                was_ready = await reader.readline() == _READY
                await reader.read()  # it has ended
                await asyncio.to_thread(process.wait)
            finally:
                writer.close()
            self._may_come = was_ready
            if not was_ready:  # one that cannot live is not to be a busy loop
                await asyncio.sleep(_RESTART_PAUSE_S)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until a standby listens, or none can live, `timeout_s` at most; a plain start is the
        alternative."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not listens(socket_path(self._home)):
            if loop.time() > deadline or not self._may_come:
                return
            await asyncio.sleep(
                _LISTENS_RETRY_S
            )  # it may be another owner's, which sends no signal


def listens(path: Path) -> bool:
    """Whether a standby listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def main(path: Path) -> None:
    """The standby's process."""
    from setproctitle import setproctitle

    setproctitle("llm-backend next standby")  # its first call, which must come before any fork
    lock = _wait_for_turn(path)
    setproctitle("llm-backend standby")
    engine_main.preload()
    engine_main.fork_engine_core()
    engine_main.register_kernels()
    _check_clean()
    if imports.VARIABLE in os.environ:
        learned = Path(os.environ[imports.VARIABLE])
        imports.preload(learned)
        _check_clean()
        imports.confirm(learned)
    packages = _packages()
    gc.collect()
    gc.freeze()  # what is imported stays shared with the engines
    tokenizers = TokenizerCache()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # first forks are reaped by the kernel
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.umask(0o077)
        listener.bind(str(path))
        listener.listen()
        os.write(0, _READY)
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            if 0 in ready:
                break  # the owner is gone
            if _packages() != packages:
                break  # its modules and those imported later would be of two versions
            if not _take_request(listener, lock, tokenizers):
                break
    path.unlink(missing_ok=True)


def _wait_for_turn(path: Path) -> int:
    """Until no other is there: the lock, as a descriptor. Ends this process with its owner."""
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    pause_s = 0.0
    while True:
        is_over, _, _ = select.select([0], [], [], pause_s)
        if is_over:
            sys.exit()
        pause_s = _LOCK_RETRY_S
        with contextlib.suppress(BlockingIOError):  # flock has no wait that can be given up
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
    path.unlink(missing_ok=True)  # one that was killed has left it
    return lock


def _check_clean() -> None:
    """Forking is safe with one thread and an untouched device only."""
    import torch

    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads != 1 or torch.cuda.is_initialized() or _is_cuda_driver_in_use():
        sys.exit(f"standby: unsafe to fork: {num_threads} threads, or CUDA is initialized")


def _is_cuda_driver_in_use() -> bool:
    """Whether this process has initialised CUDA past torch, by the driver's own answer."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # it is not even loaded
        return False
    return bool(cuda.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _CUDA_NOT_INITIALIZED)


def _packages() -> list[tuple[int, int] | None]:
    """What changes when a package is installed over another."""
    stamps: list[tuple[int, int] | None] = []
    for name in _PACKAGES:
        try:
            found = os.stat(str(sys.modules[name].__file__))
        except FileNotFoundError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_mtime_ns))
    return stamps


def _take_request(listener: socket.socket, own_lock: int, tokenizers: TokenizerCache) -> bool:
    """False: this process is of no more use, and the request was not taken."""
    connection, _ = listener.accept()
    fds: list[int] = []
    request = None
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(_MESSAGE_S)
        message, fds, _, _ = socket.recv_fds(connection, _MAX_MESSAGE_BYTES, 3)
        request = json.loads(message)
    if request and len(fds) == 3:
        if not tokenizers.load(request["checkpoint"], request["runner"]):
            return False  # its end closes the descriptors
        _check_clean()
        gc.freeze()
        if supervisor.fork_away():
            os.close(own_lock)
            _become_supervisor(listener, request, *fds)
    for fd in fds:
        os.close(fd)
    return True


def _become_supervisor(
    listener: socket.socket, request: dict[str, Any], stdin: int, stdout: int, lock: int
) -> None:
    """The rest of this process's life, in the child that `fork_away` left alone."""
    import torch._dynamo.config
    from setproctitle import setproctitle

    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.close(stdin)
    os.close(stdout)
    os.environ.clear()
    os.environ.update(request["environment"])
    # Torch has read these already, out of the standby's own environment.
    torch._dynamo.config.disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    flags: list[str] = request["flags"]

    def engine() -> None:
        setproctitle(" ".join(["llm-backend-engine", *flags]))
        engine_main.serve(flags)

    setproctitle("llm-backend supervisor.py")
    with contextlib.suppress(Exception):
        supervisor.supervise(request["grace_s"], lock, request["log"], engine)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
