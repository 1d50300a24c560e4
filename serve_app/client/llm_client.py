"""`LLMClient`: the backend from Python."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Self

from serve_app.client.events import Event, follow
from serve_app.client.lease import HeldLease, hold, lease_body, unique_owner
from serve_app.client.logs import lines
from serve_app.client.streaming import chunks
from serve_app.client.switching import OnProgress, Ticket, follow_switch
from serve_app.client.transport import Clock, Deadline, Transport

DEFAULT_URL = "http://127.0.0.1:7000"
_SWITCH_S = 1800.0  # the backend bounds a switch itself; this is past every such bound

Messages = Sequence[dict[str, Any]]
Residency = Literal["wait", "never", "force"]


class LLMClient:
    """A backend, as an async context manager; one client serves any number of tasks at once.

        async with LLMClient() as llm:
            answer = await llm.chat(model="qwen-14b", messages=[…])

    A request that the backend sends away with `Retry-After` (429, 503) is sent again then, where
    its deadline allows that. Every method raises `LLMError`s only, see `errors.py`.

    `base_url`: with or without `/v1`. `api_key`, `admin_key`: by default `LLM_BACKEND_API_KEY` and
    `LLM_BACKEND_ADMIN_KEY`; the admin's is for everything but health, models, chat and embeddings.
    `timeout_s`: for one call, from its begin to its last byte, sending again included.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        admin_key: str | None = None,
        *,
        timeout_s: float = 300.0,
        clock: Clock | None = None,
    ) -> None:
        url = base_url or os.environ.get("LLM_BACKEND_URL") or DEFAULT_URL
        self.base_url = url.rstrip("/").removesuffix("/v1")
        self.timeout_s = timeout_s
        self._clock = clock or Clock()
        admin_key = _first_key(admin_key or os.environ.get("LLM_BACKEND_ADMIN_KEY"))
        api_key = _first_key(api_key or os.environ.get("LLM_BACKEND_API_KEY")) or admin_key
        # Two pools: a lease is renewed and a switch followed while hundreds of chats wait.
        self._models = Transport(self.base_url, api_key, self._clock)
        self._admin = Transport(self.base_url, admin_key or api_key, self._clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._models.close()
        await self._admin.close()

    # --- for users ---

    async def health_check(self, timeout_s: float | None = None) -> dict[str, Any]:
        """`GET /health`: state, resident model, what is in flight and queued."""
        return await self._models.ask("GET", "/health", self._deadline(timeout_s))

    async def models(self, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Every model, resident or not, with its status and capabilities."""
        listed = await self._models.ask("GET", "/v1/models", self._deadline(timeout_s))
        models: list[dict[str, Any]] = listed["data"]
        return models

    async def chat(
        self,
        *,
        model: str,
        messages: Messages,
        temperature: float | None = None,
        max_tokens: int | None = None,
        switch: Residency | None = None,
        max_wait_s: float | None = None,
        timeout_s: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """A chat completion, in OpenAI's shape; `more`: any other field of the request.

        `switch`: what to do where the model is not resident (`X-Switch`); `max_wait_s`: wait so
        long for it, then raise ModelNotResident.
        """
        body = _chat_body(model, messages, temperature, max_tokens, more)
        deadline = self._deadline(timeout_s)
        return await self._line(switch).ask(
            "POST",
            "/v1/chat/completions",
            deadline,
            json=body,
            headers=_headers(switch, max_wait_s),
        )

    def stream(
        self,
        *,
        model: str,
        messages: Messages,
        temperature: float | None = None,
        max_tokens: int | None = None,
        switch: Residency | None = None,
        max_wait_s: float | None = None,
        timeout_s: float | None = None,
        **more: Any,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Like `chat`, in chunks as they come, in OpenAI's shape.

        A stream that ends without an error is whole. What makes the backend refuse before the
        first chunk raises as it does from `chat`; after it, AnswerCut.
        """
        body = _chat_body(model, messages, temperature, max_tokens, more) | {"stream": True}
        deadline = self._deadline(timeout_s)
        headers = _headers(switch, max_wait_s)
        return chunks(self._line(switch), "/v1/chat/completions", body, headers, deadline)

    async def embed(
        self, *, model: str, input: str | Sequence[str], timeout_s: float | None = None, **more: Any
    ) -> dict[str, Any]:
        """Embeddings, in OpenAI's shape."""
        texts = input if isinstance(input, str) else list(input)
        body = {"model": model, "input": texts} | more
        return await self._models.ask(
            "POST", "/v1/embeddings", self._deadline(timeout_s), json=body
        )

    # --- for admins ---

    async def switch(
        self,
        model: str,
        on_progress: OnProgress | None = None,
        *,
        task: str | None = None,
        drain_timeout_s: float | None = None,
        force: bool = False,
        timeout_s: float = _SWITCH_S,
    ) -> Ticket:
        """Make `model` resident; returns the finished ticket.

        `on_progress(ticket)` is called in each phase as it is entered and about once a second
        between; it may be a coroutine function. `force` cuts what is in flight. A caller that
        stops waiting does not stop the switch.

        Raises:
            SwitchFailed: it was rolled back, or failed; its `ticket` says why.
        """
        body = _switch_body(model, task, drain_timeout_s, force)
        return await self._follow("/admin/switch", body, on_progress, timeout_s)

    async def would_switch(self, model: str, *, task: str | None = None) -> dict[str, Any]:
        """What `switch` would do, and what is in the way; nothing changes."""
        body = _switch_body(model, task, None, False) | {"dry_run": True}
        return await self._admin.ask("POST", "/admin/switch", self._deadline(), json=body)

    async def unload(
        self,
        on_progress: OnProgress | None = None,
        *,
        drain_timeout_s: float | None = None,
        force: bool = False,
        timeout_s: float = _SWITCH_S,
    ) -> Ticket:
        """Make no model resident until one is asked for; like `switch`."""
        body = _switch_body(None, None, drain_timeout_s, force)
        return await self._follow("/admin/unload", body, on_progress, timeout_s)

    def lease(
        self,
        model: str,
        seconds: float = 600.0,
        owner: str | None = None,
        on_progress: OnProgress | None = None,
        *,
        task: str | None = None,
    ) -> AbstractAsyncContextManager[HeldLease]:
        """Keep `model` resident for the length of an `async with`, which begins when it serves.

        The lease is for `seconds`, renewed at each third of them and ended at the end of the
        block: a client that dies blocks the model for `seconds` at most. `lost` of what the block
        gets says why it is not held any longer, if an admin has overridden it.

        Raises:
            LeaseHeld: another owner has a lease.
            SwitchFailed: the model could not be loaded.
        """
        held = HeldLease(model, owner or unique_owner(), seconds, task)

        async def take() -> Ticket:
            return await self.take_lease(model, seconds, held.owner, on_progress, task=task)

        return hold(self._admin, held, take)

    async def take_lease(
        self,
        model: str,
        seconds: float,
        owner: str,
        on_progress: OnProgress | None = None,
        *,
        task: str | None = None,
        timeout_s: float = _SWITCH_S,
    ) -> Ticket:
        """A lease that is not renewed, from when `model` serves; raises like `lease`."""
        body = lease_body(model, seconds, owner, task)
        return await self._follow("/admin/lease", body, on_progress, timeout_s)

    async def end_lease(self) -> dict[str, Any] | None:
        """End the lease, whichever owner holds it, and return it."""
        answer = await self._admin.ask("DELETE", "/admin/lease", self._deadline())
        ended: dict[str, Any] | None = answer["ended"]
        return ended

    async def status(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Everything the backend knows of residency: `GET /admin/status`."""
        return await self._admin.ask("GET", "/admin/status", self._deadline(timeout_s))

    def events(self, last_id: str | None = None) -> AsyncGenerator[Event, None]:
        """What happens from now on, or after the event `last_id`; endless.

        After an interruption it comes again by itself and misses nothing, or says so by a `gap`.
        """
        return follow(self._admin, last_id, self.timeout_s)

    def logs(
        self, service: str = "all", num_lines: int = 200, follow: bool = False
    ) -> AsyncGenerator[str, None]:
        """The last lines of a service's log (`gateway`, a model's name, `all`, …); with `follow`,
        also what is added to it."""
        return lines(self._admin, service, num_lines, follow, self._deadline())

    async def ask_admin(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer of an admin route that has no method of its own here."""
        return await self._admin.ask(method, path, self._deadline(), json=body)

    async def _follow(
        self, path: str, body: dict[str, Any], on_progress: OnProgress | None, timeout_s: float
    ) -> Ticket:
        deadline = self._deadline(timeout_s)

        async def begin() -> Ticket:
            answer = await self._admin.ask("POST", path, deadline, json=body)
            ticket: Ticket = answer.get("ticket", answer)
            return ticket

        return await follow_switch(self._admin, begin, deadline, on_progress)

    def _line(self, switch: Residency | None) -> Transport:
        return self._admin if switch == "force" else self._models  # it is the admin's right

    def _deadline(self, timeout_s: float | None = None) -> Deadline:
        return Deadline(self._clock, self.timeout_s if timeout_s is None else timeout_s)


def _chat_body(
    model: str,
    messages: Messages,
    temperature: float | None,
    max_tokens: int | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    named = {"temperature": temperature, "max_tokens": max_tokens}
    given = {name: value for name, value in named.items() if value is not None}
    return {"model": model, "messages": list(messages)} | given | more


def _switch_body(
    model: str | None, task: str | None, drain_timeout_s: float | None, force: bool
) -> dict[str, Any]:
    fields = {"model": model, "task": task, "drain_timeout_s": 0 if force else drain_timeout_s}
    return {name: value for name, value in fields.items() if value is not None}


def _headers(switch: Residency | None, max_wait_s: float | None) -> dict[str, str]:
    headers: dict[str, str] = {"X-Switch": switch} if switch else {}
    if max_wait_s is not None:
        headers["X-Max-Wait"] = f"{max_wait_s:.3f}"
    return headers


def _first_key(keys: str | None) -> str | None:
    """The backend takes several, separated by commas."""
    return keys.split(",")[0].strip() if keys else None
