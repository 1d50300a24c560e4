"""One look-up and one generation for all identical requests that wait at the same time.

A shared generation runs in a task of its own and belongs to no request. Requests subscribe to it.
It goes on while at least one subscriber is left; when the last one leaves, the generation sees its
client leave.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from starlette.types import Message, Receive, Send

from serve_app.cache.recording import Recording
from serve_app.protocol.errors import BackendError


class Answerer(Protocol):
    """Has the engine answer one request."""

    error: BackendError | None  # the error that ends the answer, set before it is sent

    async def answer(self, receive: Receive, send: Send) -> None:
        """Send the answer, or an error; `receive` tells when the client has left."""
        ...


Prepare = Callable[[], Awaitable[Answerer]]


class SharedGeneration:
    """Finds a kept answer, or has the engine answer once and lets all subscribers follow."""

    def __init__(
        self,
        look_up: Callable[[], Awaitable[Recording | None]],
        prepare: Prepare,
        record: Callable[[Sequence[Message]], Awaitable[Recording | None]],
        keep: Callable[[Recording], Awaitable[None]],
    ) -> None:
        self.is_abandoned = asyncio.Event()  # the last subscriber has left
        self.recorded: Recording | None = None  # the generated answer, once it is whole
        self._look_up, self._prepare, self._record, self._keep = look_up, prepare, record, keep
        self._found: Recording | None = None
        self._has_looked = self._is_over = False
        self._answerer: Answerer | None = None
        self._failure: Exception | None = None
        self._messages: list[Message] = []
        self._num_subscribers = 0
        self._changed = asyncio.Event()

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Keep the generation going while the block runs."""
        self._num_subscribers += 1
        try:
            yield
        finally:
            self._num_subscribers -= 1
            if not self._num_subscribers and not self._is_over:
                self.is_abandoned.set()

    @property
    def error(self) -> BackendError | None:
        """The error that ends the generated answer, if one does."""
        return self._answerer.error if self._answerer else None

    async def found(self) -> Recording | None:
        """The kept answer; None if the engine answers, and `messages_after` has its messages."""
        while not self._has_looked and not self._is_over:
            await self._changed.wait()
        return self._found

    async def messages_after(self, position: int) -> list[Message]:
        """The messages from `position` on, as soon as there are any; empty at the end.

        Raises:
            Exception: the one that the generation raised, after the messages sent until then.
        """
        while len(self._messages) <= position and not self._is_over:
            await self._changed.wait()
        if len(self._messages) <= position and self._failure:
            raise self._failure
        return self._messages[position:]

    async def run(self) -> None:
        """Look up, else generate and keep. Ends without an exception."""
        try:
            self._found = await self._look_up()
            self._has_looked = True
            self._notify()
            if self._found is None and not self.is_abandoned.is_set():
                self._answerer = await self._prepare()
                await self._answerer.answer(self._receive, self._send)
        except Exception as exc:  # noqa: BLE001  raised again for each subscriber
            self._failure = exc
        finally:
            self._is_over = True
            self._notify()
        if self.recorded:
            await self._keep(self.recorded)

    async def _receive(self) -> Message:
        await self.is_abandoned.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_over = True  # now: subscribers do not wait until the engine's side is cleared
        self._notify()
        if self._is_over:
            self.recorded = await self._record(self._messages)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class SharedGenerations:
    """Those that can be joined now, each until its answer is kept."""

    def __init__(self) -> None:
        self._generations: dict[object, SharedGeneration] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._generations)

    def detach_all(self) -> None:
        """Let no request join one of these any more; their subscribers go on."""
        self._generations.clear()

    def join(
        self, key: object, new: Callable[[], SharedGeneration]
    ) -> tuple[SharedGeneration, bool]:
        """The generation of `key`, and whether it is new. Subscribe before awaiting anything."""
        generation = self._generations.get(key)
        if generation and not generation.is_abandoned.is_set():
            return generation, False
        generation = self._generations[key] = new()
        task = asyncio.get_running_loop().create_task(self._run(key, generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return generation, True

    async def _run(self, key: object, generation: SharedGeneration) -> None:
        try:
            await generation.run()
        finally:
            if self._generations.get(key) is generation:
                del self._generations[key]
