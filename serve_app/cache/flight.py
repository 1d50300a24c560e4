"""One look-up and one generation for all who ask the same at the same time.

A flight is nobody's own: it runs in a task of its own, and whoever asks is a passenger. It goes on
as long as one is aboard; when the last one leaves, the generation is told that its client has left.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from serve_app.cache.recording import Recording
from serve_app.protocol.errors import BackendError


class Made(Protocol):
    """An answer in the making, as an ASGI application."""

    error: BackendError | None  # that it ends with, known before it is sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


Make = Callable[[], Awaitable[Made]]


class Flight:
    """Finds an answer that is kept, or has one made and lets all who are aboard follow it."""

    def __init__(
        self,
        scope: Scope,
        look_up: Callable[[], Awaitable[Recording | None]],
        make: Make,
        record: Callable[[Sequence[Message]], Awaitable[Recording | None]],
        keep: Callable[[Recording], Awaitable[None]],
    ) -> None:
        self.is_leaving = asyncio.Event()  # nobody is aboard any more
        self.recorded: Recording | None = None  # what was made, once it is whole
        self._scope = scope
        self._look_up, self._make, self._record, self._keep = look_up, make, record, keep
        self._found: Recording | None = None
        self._has_looked = self._is_over = False
        self._made: Made | None = None
        self._failure: Exception | None = None
        self._messages: list[Message] = []
        self._num_aboard = 0
        self._news = asyncio.Event()

    @contextmanager
    def aboard(self) -> Iterator[None]:
        """Be one of those for whom it goes on."""
        self._num_aboard += 1
        try:
            yield
        finally:
            self._num_aboard -= 1
            if not self._num_aboard and not self._is_over:
                self.is_leaving.set()

    @property
    def error(self) -> BackendError | None:
        """That the answer ends with, if it does."""
        return self._made.error if self._made else None

    async def found(self) -> Recording | None:
        """What was kept before; else the answer is made, and `after` tells it."""
        while not self._has_looked and not self._is_over:
            await self._news.wait()
        return self._found

    async def after(self, position: int) -> list[Message]:
        """What has been sent from `position` on, as soon as there is something; empty at the end.

        Raises:
            Exception: what the making raised, after what had been sent until then.
        """
        while len(self._messages) <= position and not self._is_over:
            await self._news.wait()
        if len(self._messages) <= position and self._failure:
            raise self._failure
        return self._messages[position:]

    async def run(self) -> None:
        """Look up, else make and keep; ends without an exception."""
        try:
            self._found = await self._look_up()
            self._has_looked = True
            self._tell()
            if self._found is None and not self.is_leaving.is_set():
                self._made = await self._make()
                await self._made(self._scope, self._receive, self._send)
        except Exception as exc:  # noqa: BLE001  raised again for each who is aboard
            self._failure = exc
        finally:
            self._is_over = True
            self._tell()
        if self.recorded:
            await self._keep(self.recorded)

    async def _receive(self) -> Message:
        await self.is_leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_over = True  # at once: nobody waits until the engine's side is cleared
        self._tell()
        if self._is_over:
            self.recorded = await self._record(self._messages)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Flights:
    """Those that can be joined now, each until its answer is kept."""

    def __init__(self) -> None:
        self._flights: dict[object, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    def part(self) -> None:
        """None can be joined any more; who is aboard goes on."""
        self._flights.clear()

    def join(self, key: object, new: Callable[[], Flight]) -> tuple[Flight, bool]:
        """The flight of `key`, and whether it begins now. Get `aboard` before awaiting anything."""
        flight = self._flights.get(key)
        if flight and not flight.is_leaving.is_set():
            return flight, False
        flight = self._flights[key] = new()
        task = asyncio.get_running_loop().create_task(self._fly(key, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight, True

    async def _fly(self, key: object, flight: Flight) -> None:
        try:
            await flight.run()
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
