"""A gateway and the real Switchboard together: what one tells, the other acts on."""

import asyncio
import json

from tests.gateway.conftest import A, B, Whole, error_of, until
from tests.gateway.sse import check


async def test_a_request_brings_its_model(whole: Whole) -> None:
    """It waits for a switch, and is told how long that took."""
    async with whole.chat(B) as response:
        assert (response.status, response.headers["X-Model"]) == (200, B)
        assert int(response.headers["X-Queue-Ms"]) >= int(response.headers["X-Switch-Ms"])
    async with whole.chat(A, Switch="never") as response:
        assert response.status == 503
        assert B in error_of(await response.read())["message"]


async def test_force_cuts_and_takes_over(whole: Whole) -> None:
    """What is in flight ends with an error event, though a minute's drain is the rule."""
    whole.engines[A].next_token.clear()
    async with whole.chat(A, stream=True) as cut:
        async with asyncio.timeout(60), whole.chat(B, Switch="force") as response:
            assert (response.status, response.headers["X-Model"]) == (200, B)
        stream = check(cut.headers["content-type"], await cut.read())
    assert stream.error
    assert stream.error["code"] == "model_switching"


async def test_a_drain_lets_the_answer_end(whole: Whole) -> None:
    """Without force the stream is whole, and the ticket says that it is waited for."""
    whole.engines[A].next_token.clear()
    async with whole.chat(A, stream=True) as streaming:
        async with whole.client.post("/admin/switch", json={"model": B}) as response:
            assert response.status == 202
            ticket = await response.json()
        async with asyncio.timeout(60):
            while ticket["waits_for"] != {"in_flight": 1}:
                async with whole.client.get(f"/admin/switch/{ticket['id']}") as response:
                    ticket = await response.json()
        whole.engines[A].next_token.set()
        assert check(streaming.headers["content-type"], await streaming.read()).is_done
    await until(lambda: whole.gateway.admission.is_resident(B))


async def test_a_lease_holds_against_requests_and_is_followed(whole: Whole) -> None:
    """Every step of it can be listened to."""
    async with whole.client.get("/admin/events", headers={"Last-Event-ID": "x-0"}) as events:
        lease = {"model": B, "seconds": 60, "owner": "renders"}
        async with whole.client.post("/admin/lease", json=lease) as response:
            assert response.status == 202
        await until(lambda: whole.gateway.admission.is_resident(B))
        async with whole.chat(A) as response:
            assert response.status == 503
            assert error_of(await response.read())["code"] == "leased"
        async with whole.client.post("/admin/lease", json=lease | {"owner": "other"}) as response:
            assert response.status == 409
        async with whole.client.delete("/admin/lease") as response:
            assert (await response.json())["ended"]["owner"] == "renders"
        async with asyncio.timeout(60), whole.chat(A) as response:
            assert response.status == 200
        told = b""
        async with asyncio.timeout(60):
            while told.count(b'"phase": "ready"') < 3:
                told += await events.content.readany()
    blocks = [block.split("\n") for block in told.decode().split("\n\n") if "data: " in block]
    leases = [json.loads(b[2][6:])["lease"] for b in blocks if b[1] == "event: lease"]
    assert [lease and bool(lease["until"]) for lease in leases] == [False, True, None]


async def test_a_dry_run_and_an_unload_over_http(whole: Whole) -> None:
    """The first changes nothing; after the second the next request loads again."""
    async with whole.client.post("/admin/switch", json={"model": B, "dry_run": True}) as response:
        assert response.status == 200
        assert (await response.json())["to"] == B
    async with whole.client.post("/admin/unload", json={"wait": True}) as response:
        assert (response.status, (await response.json())["state"]) == (200, "done")
    async with whole.client.get("/health") as response:
        assert (await response.json())["state"] == "idle"
    async with asyncio.timeout(60), whole.chat(A) as response:
        assert response.status == 200
    assert whole.host.loads == [A, A]


async def test_a_switch_shows_on_the_page(whole: Whole) -> None:
    """What the Switchboard counts stands beside what the gateway does."""
    async with whole.chat(B) as response:
        assert response.status == 200
    async with whole.client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    switched = f'{{from="{A}",result="done",to="{B}"}} 1.0'
    assert f"llm_backend_switches_total{switched}" in lines
    assert f'llm_backend_switch_causes_total{{cause="request",to="{B}"}} 1.0' in lines
    assert not [line for line in lines if "_created" in line]
    assert f'llm_backend_resident{{model="{B}"}} 1.0' in lines
    assert f'llm_backend_queue_wait_seconds_count{{model="{B}"}} 1.0' in lines
