"""The response cache as the routes use it: answers again, or lets one generation answer all."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Send

from deployments.settings import Settings
from serve_app.cache.fingerprints import Fingerprints
from serve_app.cache.guard import GuardedStore
from serve_app.cache.key import cache_key
from serve_app.cache.policy import ROUTES, Route, is_cacheable
from serve_app.cache.recording import Recording, load, record
from serve_app.cache.shared_answer import CacheRequest, Counts, SharedAnswer, with_label
from serve_app.cache.shared_generation import Prepare, SharedGeneration, SharedGenerations
from serve_app.cache.stores import StoreFailed, open_store
from serve_app.protocol.errors import Unavailable
from serve_app.validation.threads import in_thread_if_large

_ADMIN_S = 10.0  # what an admin asks of a store may take longer than a request's look-up


class ResponseCache:
    """The cache of one gateway."""

    def __init__(self, settings: Settings) -> None:
        self.counts = Counts()
        self.generations = SharedGenerations()
        self._settings = settings.cache
        self._fingerprints = Fingerprints(settings)
        store = open_store(settings.cache)
        self.store = GuardedStore(store, settings.cache.timeout_s) if store else None
        self._num_clears = 0

    async def answer(
        self, request: CacheRequest, prepare: Prepare, receive: Receive, send: Send
    ) -> None:
        """Send the answer to `request`. The answerer that `prepare` makes is asked only where no
        answer is kept or under way.

        Raises:
            BackendError: of `prepare`, or of a shared generation, where nothing was sent yet.
        """
        if self.store is None or request.is_refused:
            self.counts.off += 1
            await (await prepare()).answer(receive, with_label(send, "off"))
            return
        route, key = ROUTES.get(request.path), None
        if route and is_cacheable(route, request.body, self._settings.seeded):
            key = await self._key(request, route)
        if route is None or key is None:
            self.counts.uncacheable += 1
            await (await prepare()).answer(receive, with_label(send, "uncacheable"))
            return

        def join() -> tuple[SharedGeneration, bool]:
            return self.generations.join(
                (key, request.terms), lambda: self._generation(route, key, prepare)
            )

        await SharedAnswer(join, self.counts, request).answer(receive, send)

    async def clear(self) -> int | None:
        """Forget all answers, also those being made; how many were kept, where that is known.

        Raises:
            Unavailable: the store does not do it.
        """
        self._num_clears += 1
        self.generations.detach_all()
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
            "in_flight": len(self.generations),
            "entries": size and size[0],
            "bytes": size and size[1],
        }

    async def close(self) -> None:
        if self.store:
            await self.store.store.close()

    def _generation(self, route: Route, key: str, prepare: Prepare) -> SharedGeneration:
        """A generation whose answer is kept, unless the cache is cleared meanwhile."""
        num_clears = self._num_clears

        async def keep(recording: Recording) -> None:
            if num_clears == self._num_clears:
                await self._keep(key, recording)

        return SharedGeneration(
            look_up=lambda: self._find(key, route),
            prepare=prepare,
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
        """The answer, if it may be kept; a large one is not even read."""
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

    async def _key(self, request: CacheRequest, route: Route) -> str | None:
        """None where the target's weights are not known."""
        fingerprint = await self._fingerprints.of(request.target, request.epoch)
        if fingerprint is None:
            return None
        return cache_key(request.path, request.body, route.ignored, fingerprint, request.namespace)


def _shown(url: str | None) -> str | None:
    """An address without its password."""
    if url is None:
        return None
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
