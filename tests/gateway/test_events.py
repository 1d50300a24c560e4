"""`GET /admin/events`: server-sent events of what the Switchboard tells."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.gateway.conftest import A, B, Backend, error_of, until

EVENTS = "/admin/events"


async def block(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The next event's fields, or the comment under ""."""
    async with asyncio.timeout(60):
        raw = (await response.content.readuntil(b"\n\n")).decode()
    fields = (line.split(": ", 1) for line in raw.strip().split("\n"))
    return {name.removesuffix(":"): value for name, value in fields}


async def connect(backend: Backend, last: str | None = None) -> aiohttp.ClientResponse:
    headers = {"Last-Event-ID": last} if last else {}
    response: aiohttp.ClientResponse = await backend.client.get(EVENTS, headers=headers)
    assert response.status == 200
    assert response.content_type == "text/event-stream"
    return response


async def test_a_new_listener_gets_what_happens_from_now_on(backend: Backend) -> None:
    """Its place first, so that it can come back to it; then each event with its id."""
    await backend.switchboard.happen("switch", id="sw-1")
    async with await connect(backend) as response:
        assert await block(response) == {"retry": "1000", "id": "boot-1-1"}
        await backend.switchboard.happen("switch", id="sw-2", to=B)
        await backend.switchboard.happen("lease", lease=None)
        event = await block(response)
        assert (event["id"], event["event"]) == ("boot-1-2", "switch")
        assert json.loads(event["data"]) == {"id": "sw-2", "to": B}
        assert (await block(response))["event"] == "lease"


async def test_a_listener_that_comes_back_gets_what_it_missed(backend: Backend) -> None:
    """Exactly the events after its last one."""
    for number in range(4):
        await backend.switchboard.happen("switch", number=number)
    async with await connect(backend, "boot-1-2") as response:
        assert (await block(response))["id"] == "boot-1-2"
        assert [(await block(response))["id"] for _ in range(2)] == ["boot-1-3", "boot-1-4"]


async def test_an_id_of_another_boot_is_answered_with_a_gap(backend: Backend) -> None:
    """Its number means nothing any more: all that there is follows."""
    await backend.switchboard.happen("switch", id="sw-1")
    async with await connect(backend, "boot-0-1") as response:
        assert (await block(response))["id"] == "boot-1-0"
        gap = await block(response)
        assert (gap["event"], gap["id"]) == ("gap", "boot-1-0")
        assert (await block(response))["id"] == "boot-1-1"


@pytest.mark.parametrize("last", ["x", "boot-1-", "boot-1-x", "7"])
async def test_an_id_that_was_never_given_is_400(backend: Backend, last: str) -> None:
    """Rather than a silent start somewhere else."""
    async with backend.client.get(EVENTS, headers={"Last-Event-ID": last}) as response:
        assert response.status == 400
        assert error_of(await response.read())["param"] == "Last-Event-ID"


async def test_a_quiet_stream_is_kept_alive(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With comments, which clients drop."""
    monkeypatch.setattr("serve_app.routes.event_stream._HEARTBEAT_S", 0.02)
    async with await connect(backend) as response:
        await block(response)
        assert [await response.content.readline() for _ in range(2)] == [b": no new events\n"] * 2


async def test_a_stream_ends_when_the_switchboard_goes(backend: Backend) -> None:
    """Cleanly: the client comes again by itself. A new one is told to come later."""
    async with await connect(backend) as response:
        await block(response)
        await backend.switchboard.go_away()
        async with asyncio.timeout(60):
            assert await response.read() == b""
    async with backend.client.get(EVENTS) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        error_of(await response.read())


async def test_a_stream_ends_when_the_switchboard_has_restarted(backend: Backend) -> None:
    """No number of one boot goes on under the other's name."""
    async with await connect(backend) as response:
        await block(response)
        await backend.show(boot="boot-2")
        async with asyncio.timeout(60):
            assert await response.read() == b""


async def test_a_listener_that_leaves_is_forgotten(backend: Backend) -> None:
    """Its call to the Switchboard ends with it; others go on."""
    open_calls = 0
    events = backend.switchboard.events

    async def counted(*args: Any) -> Any:
        nonlocal open_calls
        open_calls += 1
        try:
            return await events(*args)
        finally:
            open_calls -= 1

    backend.switchboard.events = counted  # type: ignore[method-assign]
    responses = [await connect(backend) for _ in range(20)]
    for response in responses:
        await block(response)
    await until(lambda: open_calls == 20)
    for response in responses[1:]:
        response.close()
    await until(lambda: open_calls == 1)
    await backend.switchboard.happen("switch", id="sw-1", to=A)
    assert (await block(responses[0]))["id"] == "boot-1-1"
    responses[0].close()
    await until(lambda: not open_calls)
