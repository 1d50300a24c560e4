"""The response cache as the routes use it: give again, or let one make it for all."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Message, Scope

from deployments.settings import Settings
from serve_app.cache.fingerprints import Fingerprints
from serve_app.cache.flight import Flight, Flights, Make
from serve_app.cache.guard import GuardedStore
from serve_app.cache.key import cache_key
from serve_app.cache.policy import ROUTES, Route, is_cacheable
from serve_app.cache.recording import Recording, load, record
from serve_app.cache.shared_answer import Counts, Question, SharedAnswer, WithCacheHeader
from serve_app.cache.stores import StoreFailed, open_store
from serve_app.protocol.errors import Unavailable
from serve_app.validation.threads import in_thread_if_large

_ADMIN_S = 10.0  # what an admin asks of a store may take longer than a request's look-up


class ResponseCache:
    """The cache of one gateway."""

    def __init__(self, settings: Settings) -> None:
        self.counts = Counts()
        self.flights = Flights()
        self._settings = settings.cache
        self._fingerprints = Fingerprints(settings)
        store = open_store(settings.cache)
        self.store = GuardedStore(store, settings.cache.timeout_s) if store else None
        self._num_clears = 0

    async def answer(self, question: Question, make: Make) -> Response:
        """What answers `question`: `make` is called only where nothing is kept or under way.

        Raises:
            BackendError: what `make` raises.
        """
        if self.store is None or question.is_refused:
            self.counts.off += 1
            return WithCacheHeader(await make(), "off")
        route, key = ROUTES.get(question.path), None
        if route and is_cacheable(route, question.body, self._settings.seeded):
            key = await self._key(question, route)
        if route is None or key is None:
            self.counts.uncacheable += 1
            return WithCacheHeader(await make(), "uncacheable")
        flights, flight_key = self.flights, (key, question.terms)

        def join(scope: Scope) -> tuple[Flight, bool]:
            return flights.join(flight_key, lambda: self._flight(scope, question, route, key, make))

        return SharedAnswer(join, self.counts, question)

    async def clear(self) -> int | None:
        """Forget all answers, also those being made; how many were kept, where that is known.

        Raises:
            Unavailable: the store does not do it.
        """
        self._num_clears += 1
        self.flights.part()
        if self.store is None:
            return 0
        try:
            async with asyncio.timeout(_ADMIN_S):
                return await self.store.store.clear()
        except (StoreFailed, TimeoutError) as exc:
            raise Unavailable("The cache's store does not answer.", retry_after_s=5) from exc

    async def stats(self) -> dict[str, Any]:
        """The body of `GET /admin/cache`."""
        size, state = None, "off"
        if self.store:
            state = "away" if self.store.circuit.is_open else "ok"
            try:
                async with asyncio.timeout(1):
                    size = await self.store.store.size()
            except (StoreFailed, TimeoutError):
                state = "away"
        return {
            "url": _shown(self._settings.url.get_secret_value() if self._settings.url else None),
            "state": state,
            **vars(self.counts),
            "errors": self.store.num_errors if self.store else 0,
            "in_flight": len(self.flights),
            "entries": size and size[0],
            "bytes": size and size[1],
        }

    async def close(self) -> None:
        if self.store:
            await self.store.store.close()

    def _flight(
        self, scope: Scope, question: Question, route: Route, key: str, make: Make
    ) -> Flight:
        """Keeps what is made from now on, unless the cache is cleared meanwhile."""
        num_clears = self._num_clears

        async def keep(recording: Recording) -> None:
            if num_clears == self._num_clears:
                await self._keep(key, recording)

        return Flight(
            scope,
            look_up=lambda: self._find(key, route),
            make=make,
            record=lambda messages: self._record(route, messages),
            keep=keep,
        )

    async def _find(self, key: str, route: Route) -> Recording | None:
        assert self.store
        raw = await self.store.get(key)
        if raw is None:
            return None
        found = await in_thread_if_large(len(raw), lambda: load(raw, route))
        self.counts.garbage += found is None
        return found

    async def _record(self, route: Route, messages: Sequence[Message]) -> Recording | None:
        """What was made, if it may be kept; a large one is not even read."""
        num_bytes = sum(len(message.get("body", b"")) for message in messages)
        if num_bytes <= self._settings.max_value_bytes:
            return await in_thread_if_large(num_bytes, lambda: record(route, messages))
        self.counts.too_large += 1
        return None

    async def _keep(self, key: str, recording: Recording) -> None:
        assert self.store
        value = recording.dump()
        if len(value) > self._settings.max_value_bytes:
            self.counts.too_large += 1
        else:
            self.counts.stored += await self.store.set(key, value)

    async def _key(self, question: Question, route: Route) -> str | None:
        """None where the target's weights are not known."""
        fingerprint = await self._fingerprints.of(question.target, question.epoch)
        if fingerprint is None:
            return None
        return cache_key(
            question.path, question.body, route.ignored, fingerprint, question.namespace
        )


def _shown(url: str | None) -> str | None:
    """An address without its password."""
    if url is None:
        return None
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
