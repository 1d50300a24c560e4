"""The admin's other routes: dry runs, unloading, leases, the history."""

from typing import Any

import pytest

from deployments.switchboard.errors import LeaseHeldError
from tests.gateway.conftest import A, B, Backend, error_of

LEASE = {"model": B, "seconds": 60, "owner": "renders"}


async def send(backend: Backend, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with backend.client.request(method, path, json=body) as response:
        return response.status, await response.json()


async def test_a_dry_run_asks_only_what_would_happen(backend: Backend) -> None:
    """200, and no switch."""
    backend.switchboard.answer = {"dry_run": True, "blockers": []}
    status, answer = await send(
        backend, "POST", "/admin/switch", {"model": B, "dry_run": True, "wait": True}
    )
    assert (status, answer) == (200, backend.switchboard.answer)
    assert backend.switchboard.questions == [("would_switch", B)]
    assert not backend.switchboard.switches


@pytest.mark.parametrize(("state", "status"), [("running", 202), ("done", 200), ("failed", 503)])
async def test_unload_answers_with_its_ticket(backend: Backend, state: str, status: int) -> None:
    """As a switch does."""
    backend.switchboard.answer = {"id": "sw-1", "state": state}
    body = {"drain_timeout_s": 3, "wait": state != "running"}
    assert await send(backend, "POST", "/admin/unload", body) == (
        status,
        backend.switchboard.answer,
    )
    [(_, drain_timeout_s, wait_s)] = backend.switchboard.questions
    assert (drain_timeout_s, wait_s is None) == (3, state == "running")


@pytest.mark.parametrize(("state", "status"), [("done", 200), ("queued", 202)])
async def test_a_lease_answers_with_lease_and_ticket(
    backend: Backend, state: str, status: int
) -> None:
    """200 where the model is resident already."""
    backend.switchboard.answer = {"lease": LEASE, "ticket": {"state": state}}
    assert await send(backend, "POST", "/admin/lease", LEASE) == (
        status,
        backend.switchboard.answer,
    )
    assert backend.switchboard.questions == [("lease", B, 60, "renders")]


async def test_a_lease_held_by_another_is_409(backend: Backend) -> None:
    """With who holds it."""
    backend.switchboard.answer = LeaseHeldError(f"{A} is leased to others.")
    async with backend.client.post("/admin/lease", json=LEASE) as response:
        assert response.status == 409
        error = error_of(await response.read())
    assert (error["code"], error["param"]) == ("lease_held", "model")
    assert error["message"] == f"{A} is leased to others."


async def test_a_lease_is_ended(backend: Backend) -> None:
    """200 also where there was none."""
    backend.switchboard.answer = {"ended": None}
    assert await send(backend, "DELETE", "/admin/lease") == (200, {"ended": None})


async def test_the_history_is_listed(backend: Backend) -> None:
    """As many as asked for."""
    backend.switchboard.answer = {"id": "sw-1"}
    for path, num in [("/admin/switches", 50), ("/admin/switches?limit=2", 2)]:
        status, listed = await send(backend, "GET", path)
        assert (status, listed["object"], len(listed["data"])) == (200, "list", num)


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "1.5", ""])
async def test_a_bad_limit_is_400(backend: Backend, limit: str) -> None:
    """In OpenAI's shape, naming it."""
    async with backend.client.get(f"/admin/switches?limit={limit}") as response:
        assert response.status == 400
        assert error_of(await response.read())["param"] == "limit"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/admin/switch", {"model": B, "dry_run": "yes"}, "dry_run"),
        ("/admin/switch", {"model": B, "drain_timeout_s": 3601}, "drain_timeout_s"),
        ("/admin/unload", {"model": B}, "model"),
        ("/admin/unload", {"wait": 1}, "wait"),
        ("/admin/unload", {"drain_timeout_s": -1}, "drain_timeout_s"),
        ("/admin/lease", LEASE | {"seconds": 0}, "seconds"),
        ("/admin/lease", LEASE | {"seconds": "60"}, "seconds"),
        ("/admin/lease", LEASE | {"seconds": 86401}, "seconds"),
        ("/admin/lease", LEASE | {"owner": ""}, "owner"),
        ("/admin/lease", LEASE | {"owner": "x" * 101}, "owner"),
        ("/admin/lease", LEASE | {"force": True}, "force"),
        ("/admin/lease", {"model": B, "seconds": 60}, "owner"),
    ],
)
async def test_a_bad_admin_body_is_400(
    backend: Backend, path: str, body: dict[str, Any], field: str
) -> None:
    """It names the field, and the Switchboard never hears of it."""
    async with backend.client.post(path, json=body) as response:
        assert response.status == 400
        error = error_of(await response.read())
    assert error["param"] == field
    assert error["message"].startswith(f"Invalid '{field}': ")
    assert not backend.switchboard.questions + backend.switchboard.switches


@pytest.mark.parametrize("path", ["/admin/switch", "/admin/lease"])
async def test_an_unknown_model_is_404(backend: Backend, path: str) -> None:
    """Here as elsewhere."""
    body = LEASE | {"model": "nope"} if path == "/admin/lease" else {"model": "nope"}
    async with backend.client.post(path, json=body) as response:
        assert response.status == 404
        assert error_of(await response.read())["code"] == "model_not_found"
