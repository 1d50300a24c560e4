"""Relays a model's own port, from when each model had one, to the gateway while it is resident.

Every byte goes through the gateway, so its keys, limits and counts apply. Listens on loopback only.
"""

import asyncio
import logging

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024

logger = logging.getLogger("llm_backend.old_port")


class LegacyPort:
    """Relays `port` to the gateway at `gateway` (host, port) between `open` and `close`."""

    def __init__(self, port: int, gateway: tuple[str, int]) -> None:
        self._port = port
        self._gateway = gateway
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on the port. If another program has it, logs a warning: the model must serve."""
        if self._server:
            return
        try:
            self._server = await asyncio.start_server(self._relay, _HOST, self._port)
        except OSError as exc:
            logger.warning(
                "cannot listen on this model's own port %d: %s", self._port, exc.strerror or exc
            )

    async def close(self) -> None:
        """Stop listening and close the connections: their requests have ended or were cut."""
        server, self._server = self._server, None
        if server:
            server.close()
            for client in list(self._clients):
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._clients.add(task)
        try:
            onward = await asyncio.open_connection(*self._gateway)
            await _join((reader, writer), onward)
        except OSError as exc:
            logger.warning("port %d cannot reach the gateway: %s", self._port, exc.strerror or exc)
        finally:
            writer.close()
            self._clients.discard(task)


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(client: _End, gateway: _End) -> None:
    """Pass bytes both ways until the gateway closes; a half-closed connection stays half closed."""
    sides = [
        asyncio.ensure_future(_pass_on(client[0], gateway[1])),
        asyncio.ensure_future(_pass_on(gateway[0], client[1])),
    ]
    try:
        # Only the gateway's end is the end: a client that has sent everything may still read.
        await asyncio.wait({sides[1]})
    finally:
        for side in sides:
            side.cancel()
        await asyncio.gather(*sides, return_exceptions=True)
        gateway[1].close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:  # one side is gone: close the other side too
        writer.close()
