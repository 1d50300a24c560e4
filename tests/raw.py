"""A client of bare sockets that sends as real ones do: head and body apart, or byte by byte.

Most libraries write a request's head and its body in two segments, and a server that has read the
one has not seen the other. So each piece here is sent when the server has taken the one before it.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Self


class Leaving(StrEnum):
    """The ways in which a connection can be closed."""

    FIN = "fin"
    RST = "rst"
    HALF = "half"  # no more is written; answers would still be read
    HALF_THEN_CLOSE = "half_then_close"


def request(
    path: str,
    body: dict[str, Any] | bytes | None = None,
    *,
    method: str | None = None,
    version: str = "1.1",
    headers: Iterable[tuple[str, str]] = (),
) -> tuple[bytes, bytes]:
    """Head and body of a request; JSON of a dictionary, as it is of bytes."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body or b""
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/{version}"]
    lines += ["Host: localhost"] if not any(name.lower() == "host" for name, _ in headers) else []
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), data


class RawClient:
    """One connection. What is sent goes out as it is given, one segment a piece."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1") -> Self:
        connection = await asyncio.to_thread(socket.create_connection, (host, port), 60)
        return cls(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a segment of its own."""
        for piece in pieces:
            async with asyncio.timeout(60):
                while not self._is_taken():  # noqa: ASYNC110 (another process's reading)
                    await asyncio.sleep(0)
                await asyncio.get_running_loop().sock_sendall(self._socket, piece)

    async def send_bytewise(self, *pieces: bytes) -> None:
        await self.send(*[bytes([byte]) for piece in pieces for byte in piece])

    async def until(self, mark: bytes, timeout_s: float = 60) -> bytes:
        """All that has come, once `mark` is in it."""
        async with asyncio.timeout(timeout_s):
            while mark not in self._received:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
                assert data, f"closed after {self._received!r}"
                self._received += data
        return self._received

    async def all(self, timeout_s: float = 60) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.get_running_loop().sock_recv(self._socket, 65536):
                    self._received += data
        return self._received

    def leave(self, way: Leaving) -> None:
        """Go, without having read what is still to come."""
        if way is Leaving.RST:
            no_linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        if way in (Leaving.HALF, Leaving.HALF_THEN_CLOSE):
            self._socket.shutdown(socket.SHUT_WR)
        if way is not Leaving.HALF:
            self._socket.close()

    def _is_taken(self) -> bool:
        """Whether the server has read all that was sent: nothing waits in its socket or here."""
        ours, theirs = self._socket.getsockname()[1], self._socket.getpeername()[1]
        ends = {f":{ours:04X}", f":{theirs:04X}"}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, remote, _, queues, *_ = line.split(maxsplit=5)
                if {local[-5:], remote[-5:]} == ends:
                    to_send, to_read = (int(number, 16) for number in queues.split(":"))
                    if to_read if local.endswith(f":{theirs:04X}") else to_send:
                        return False
        return True


async def ask(port: int, *pieces: bytes, timeout_s: float = 60) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer to what is sent so, read until the server closes."""
    async with await RawClient.connect(port) as client:
        await client.send(*pieces)
        head, _, body = (await client.all(timeout_s)).partition(b"\r\n\r\n")
        return int(head.split()[1]), head, body
