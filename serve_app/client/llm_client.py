"""`LLMClient`: the backend's API as Python methods."""

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
_SWITCH_S = 1800.0  # longer than every time limit that the backend sets for a switch

Messages = Sequence[dict[str, Any]]
Residency = Literal["wait", "never", "force"]


class LLMClient:
    """A client of one backend, as an async context manager. Any number of tasks may share it.

        async with LLMClient() as llm:
            answer = await llm.chat(model="qwen-14b", messages=[…])

    If the backend refuses a request with `Retry-After` (429, 503), the client waits that long and
    sends it again, unless the call's time would be over by then. Every method raises errors of the
    tree in `errors.py` only; each may raise Unreachable, DeadlineExceeded, and APIError or one of
    its subclasses. Methods name under `Raises:` the errors that are specific to them.

    Args:
        base_url: the backend's address, with or without `/v1`. Default: `LLM_BACKEND_URL`, else
            http://127.0.0.1:7000.
        api_key: the key for health, models, chat and embeddings. Default: `LLM_BACKEND_API_KEY`,
            else the admin key.
        admin_key: the key for everything else. Default: `LLM_BACKEND_ADMIN_KEY`, else the API key.
            Of several keys, separated by commas, the first is used.
        timeout_s: seconds that one call may take, from its start to its last byte, retries
            included.
        clock: the time and how to wait; tests replace it.
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
        # Two pools, so that the client can renew a lease and follow a switch while hundreds of
        # chats wait for a connection.
        self.api_key = api_key
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
        """Close all connections."""
        await self._models.close()
        await self._admin.close()

    # --- with an API key ---

    async def health_check(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return `GET /health`: state, resident model, numbers of requests in flight and queued.

        `timeout_s`: here and in the methods below, seconds for this call instead of the client's.
        """
        return await self._models.ask("GET", "/health", self._deadline(timeout_s))

    async def models(self, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return every model, resident or not, with its status and capabilities."""
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
        """Return a chat completion in OpenAI's shape.

        Args:
            model: the model's name.
            messages: in OpenAI's shape.
            temperature: None for the backend's default.
            max_tokens: None for the backend's default.
            switch: what to do if the model is not resident (header `X-Switch`): `wait` for it,
                `never` wait, or `force` a switch, which needs an admin key. None for the
                backend's default.
            max_wait_s: seconds to wait for the model (header `X-Max-Wait`).
            timeout_s: seconds for this call instead of the client's.
            more: any other field of the request.

        Raises:
            ModelNotResident: the model is not resident and the request does not wait, or waited
                `max_wait_s`; or another model is leased.
            ModelLoadFailed: the model could not be loaded.
            Overloaded: the queue is full.
        """
        body = _chat_body(model, messages, temperature, max_tokens, more)
        deadline = self._deadline(timeout_s)
        return await self._transport(switch).ask(
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
        """Yield a chat completion in chunks as they arrive, in OpenAI's shape.

        The arguments are those of `chat`. A stream that ends without an error is complete.

        Raises:
            AnswerCut: the stream ended before the answer was complete. An error that the backend
                reports before the first chunk is raised as by `chat`.
        """
        body = _chat_body(model, messages, temperature, max_tokens, more) | {"stream": True}
        deadline = self._deadline(timeout_s)
        headers = _headers(switch, max_wait_s)
        return chunks(self._transport(switch), "/v1/chat/completions", body, headers, deadline)

    async def embed(
        self, *, model: str, input: str | Sequence[str], timeout_s: float | None = None, **more: Any
    ) -> dict[str, Any]:
        """Return embeddings in OpenAI's shape.

        Args:
            model: the model's name.
            input: one text or several.
            timeout_s: seconds for this call instead of the client's.
            more: any other field of the request.

        Raises:
            ModelNotResident, ModelLoadFailed, Overloaded: as `chat`.
        """
        texts = input if isinstance(input, str) else list(input)
        body = {"model": model, "input": texts} | more
        return await self._models.ask(
            "POST", "/v1/embeddings", self._deadline(timeout_s), json=body
        )

    # --- with an admin key ---

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
        """Make `model` resident, and return the finished ticket.

        A caller that stops waiting does not stop the switch.

        Args:
            model: the model's name.
            on_progress: called with the ticket as each phase begins and about once a second in
                between; it may be a coroutine function.
            task: `generate` or `embed`. None for the model's first task.
            drain_timeout_s: seconds that requests in flight may still take. None for the
                backend's default.
            force: cut the requests in flight; the same as a `drain_timeout_s` of 0.
            timeout_s: seconds to wait for the switch.

        Raises:
            SwitchFailed: the switch was rolled back or failed; `ticket` has the cause.
            DeadlineExceeded: `timeout_s` is over; the switch continues.
        """
        body = _switch_body(model, task, drain_timeout_s, force)
        return await self._follow("/admin/switch", body, on_progress, timeout_s)

    async def would_switch(self, model: str, *, task: str | None = None) -> dict[str, Any]:
        """Return what `switch` would do and what blocks it; nothing changes."""
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
        """Unload the resident model; the next request for a model loads it.

        Arguments, result and errors are those of `switch`.
        """
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
        """Keep `model` resident while an `async with` block runs; the block starts when it serves.

        The client renews the lease each time a third of `seconds` has passed, and ends it after
        the block. A client that dies blocks the model for `seconds` at most. If the lease is lost
        (an admin has switched), the block continues, and `lost` of its HeldLease gives the reason.

        Args:
            model: the model's name.
            seconds: the time after which the lease ends if it is not renewed.
            owner: the name shown to other users. Default: user, host and process.
            on_progress: called with the ticket of the switch, as for `switch`.
            task: `generate` or `embed`. None for the model's first task.

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
        """Take a lease that is not renewed, and return the ticket of its switch.

        The lease ends `seconds` after `model` serves. Other arguments and errors are those of
        `lease` and `switch`.
        """
        body = lease_body(model, seconds, owner, task)
        return await self._follow("/admin/lease", body, on_progress, timeout_s)

    async def end_lease(self) -> dict[str, Any] | None:
        """End the lease, whoever holds it; return the ended lease, or None if there was none."""
        answer = await self._admin.ask("DELETE", "/admin/lease", self._deadline())
        ended: dict[str, Any] | None = answer["ended"]
        return ended

    async def status(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return `GET /admin/status`: residency, switches, waiting requests, lease, failures."""
        return await self._admin.ask("GET", "/admin/status", self._deadline(timeout_s))

    def events(self, last_id: str | None = None) -> AsyncGenerator[Event, None]:
        """Yield events from now on, or those after the event `last_id`; never ends by itself.

        After an interruption the client reconnects. No event is lost, or a `gap` event reports it.

        Raises:
            Unreachable: the first connection failed, or no reconnect succeeded for the client's
                `timeout_s`.
        """
        return follow(self._admin, last_id, self.timeout_s)

    def logs(
        self, service: str = "all", num_lines: int = 200, follow: bool = False
    ) -> AsyncGenerator[str, None]:
        """Yield the last lines of a service's log.

        Args:
            service: `gateway`, `switchboard`, a model's name, …, or `all`; with `all`, each line
                begins with its service.
            num_lines: the number of lines.
            follow: then also yield new lines, without an end.
        """
        return lines(self._admin, service, num_lines, follow, self._deadline())

    async def ask_admin(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request to any admin route, and return its JSON object."""
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

    def _transport(self, switch: Residency | None) -> Transport:
        return self._admin if switch == "force" else self._models  # `force` needs an admin key

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
    """The variables may name several keys, separated by commas, as the backend's do."""
    return keys.split(",")[0].strip() if keys else None
