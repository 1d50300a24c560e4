"""The old port: open while it should be, and every byte goes to the gateway and back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.model_server.legacy_port import LegacyPort
from serve_app.launcher.ports import free_port


class Echo:
    """A gateway that sends back what it gets, until that ends; `gone` counts who has left."""

    def __init__(self) -> None:
        self.gone = asyncio.Semaphore(0)
        self.server: asyncio.Server | None = None
        self.address = ("127.0.0.1", free_port())

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._echo, *self.address)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
            self.gone.release()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    await echo.start()
    yield echo
    assert echo.server
    echo.server.close()


@pytest.fixture
async def old(echo: Echo) -> AsyncIterator[tuple[LegacyPort, int]]:
    port = free_port()
    old = LegacyPort(port, echo.address)
    yield old, port
    await old.close()


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_port_listens_between_open_and_close_only(old: tuple[LegacyPort, int]) -> None:
    old_port, port = old
    assert not await is_open(port)
    await old_port.open()
    await old_port.open()
    assert await is_open(port)
    await old_port.close()
    assert not await is_open(port)
    await old_port.open()
    assert await is_open(port)


async def test_a_megabyte_goes_there_and_back(old: tuple[LegacyPort, int]) -> None:
    """Also after the client has closed its half: what it sent is answered to the end."""
    old_port, port = old
    await old_port.open()
    sent = bytes(range(256)) * 4096
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    async with asyncio.timeout(60):
        _, received = await asyncio.gather(send(), reader.read(-1))
    assert received == sent
    writer.close()


@pytest.mark.parametrize("is_rude", [False, True])
async def test_gateway_learns_that_a_client_has_left(
    echo: Echo, old: tuple[LegacyPort, int], is_rude: bool
) -> None:
    """By a closed connection or a reset one: otherwise the engine would finish an answer that no
    client reads."""
    old_port, port = old
    await old_port.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.transport.abort() if is_rude else writer.close()
    async with asyncio.timeout(60):
        await echo.gone.acquire()


async def test_closing_ends_what_is_connected(echo: Echo, old: tuple[LegacyPort, int]) -> None:
    old_port, port = old
    await old_port.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    await reader.readexactly(1)
    async with asyncio.timeout(60):
        await old_port.close()
        assert await reader.read() == b""
        await echo.gone.acquire()
    writer.close()


async def test_port_of_another_program_is_left_to_it(echo: Echo) -> None:
    """The model serves all the same, at its proper address."""
    taken = LegacyPort(echo.address[1], ("127.0.0.1", 1))
    await taken.open()
    await taken.close()
    assert await is_open(echo.address[1])


async def test_gateway_that_is_away_ends_the_connection(old: tuple[LegacyPort, int]) -> None:
    port = free_port()
    lonely = LegacyPort(port, ("127.0.0.1", free_port()))
    await lonely.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()
    await lonely.close()
