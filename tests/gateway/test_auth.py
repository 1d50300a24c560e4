"""Who may do what: every route, with no key, a wrong one, a user's and an admin's."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.requests import Request

from deployments.settings import Settings, SettingsError, check_bound, is_loopback
from serve_app.routes.auth import Guard, namespace_of
from tests.gateway.conftest import Backend, Front, error_of

USER, ADMIN = "user-key-1", "admin-key-1"
OPEN = {
    "/health",
    "/health/ready",
    "/",
    "/console/{path:path}",
    "/docs",
    "/docs/{path:path}",
}  # the pages themselves, not what they ask


def guard(settings: Settings, *, users: list[str], admins: list[str], **http: Any) -> Guard:
    keys = {"api_keys": users, "admin_keys": admins}
    update: dict[str, Any] = {name: tuple(map(SecretStr, keys[name])) for name in keys}
    update["http"] = settings.http.model_copy(update=http)
    return Guard.of(settings.model_copy(update=update))


def app_of(front: Front) -> FastAPI:
    app = front.app
    while not isinstance(app, FastAPI):
        app = vars(app).get("app") or vars(app)["_app"]  # Starlette's name, and Serve's
    return app


@pytest.fixture
def keyed(backend: Backend, front: Front, settings: Settings) -> Backend:
    """Two users' keys and an admin's."""
    app_of(front).state.guard = guard(settings, users=["other", USER], admins=[ADMIN])
    return backend


def routes_of(front: Front) -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in app_of(front).routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]


async def ask(
    backend: Backend, method: str, path: str, key: str | None = None, **headers: str
) -> tuple[int, bytes]:
    """Without a body: what may be asked is refused for that, later than for a key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Authorization"] = f"Bearer {key}"
    path = path.replace("{ticket_id}", "sw-1").replace("{name}", "qwen-14b")
    async with asyncio.timeout(60):
        async with backend.client.request(method, path, headers=named) as response:
            # a stream that has begun was let through
            is_stream = response.content_type == "text/event-stream"
            return response.status, b"" if is_stream else await response.read()


async def test_every_route_asks_for_the_right_key(keyed: Backend, front: Front) -> None:
    """401 without a valid key, 403 with one that is not an admin's, and never a change of state."""
    routes = routes_of(front)
    assert len(routes) > 15
    for method, path in routes:
        statuses = [(await ask(keyed, method, path, k))[0] for k in (None, "wrong", USER, ADMIN)]
        if path in OPEN:
            assert not {401, 403} & set(statuses), path
        elif path.startswith("/admin/"):
            assert statuses[:3] == [401, 401, 403], path
            assert statuses[3] not in (401, 403), path
        else:
            assert statuses[:2] == [401, 401], path
            assert not {401, 403} & set(statuses[2:]), path
    assert not keyed.switchboard.switches


async def test_without_keys_this_machine_may_do_everything(backend: Backend, front: Front) -> None:
    for method, path in routes_of(front):
        assert (await ask(backend, method, path))[0] not in (401, 403), path


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Basic {USER}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {USER}x"},
        {"Authorization": f"Bearer {USER[:-1]}"},
        {"Authorization": "Bearer caf\u00e9"},
        {"Authorization": "Bearer " + "k" * 5000},
        {"Cookie": f"key={USER}"},
    ],
)
async def test_what_is_no_valid_key_is_refused(keyed: Backend, headers: dict[str, str]) -> None:
    async with keyed.client.get("/models", headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        error = error_of(await response.read())
    assert error["code"] == "invalid_api_key"
    assert USER not in str(error)


@pytest.mark.parametrize("query", [f"api_key={ADMIN}", f"key={ADMIN}", f"Authorization={ADMIN}"])
async def test_key_in_the_address_is_none(keyed: Backend, query: str) -> None:
    """Addresses are logged on the way."""
    assert (await ask(keyed, "GET", f"/admin/status?{query}"))[0] == 401


async def test_anthropics_header_is_a_key_too(keyed: Backend) -> None:
    assert (await ask(keyed, "GET", "/models", x_api_key=USER))[0] == 200


async def test_force_needs_the_admins_key(keyed: Backend) -> None:
    """It cuts what others have asked."""
    body = {"model": "qwen-coder", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {USER}", "X-Switch": "force"}
    async with keyed.client.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 403
    assert not keyed.switchboard.switches


async def test_without_an_admin_key_the_api_key_is_one(
    backend: Backend, front: Front, settings: Settings
) -> None:
    app_of(front).state.guard = guard(settings, users=[USER], admins=[])
    assert (await ask(backend, "GET", "/admin/switches?limit=1", USER))[0] != 403
    assert (await ask(backend, "GET", "/admin/status"))[0] == 401


async def test_admin_key_alone_leaves_the_models_open(
    backend: Backend, front: Front, settings: Settings
) -> None:
    app_of(front).state.guard = guard(settings, users=[], admins=[ADMIN])
    assert (await ask(backend, "GET", "/models"))[0] == 200
    assert (await ask(backend, "GET", "/admin/status"))[0] == 401
    assert (await ask(backend, "GET", "/models", Host="evil.example"))[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "x/health?", "a b", ""])
async def test_foreign_host_is_refused(keyed: Backend, host: str) -> None:
    """To an admin whatever the key, to everybody where no key is needed."""
    status, body = await ask(keyed, "GET", "/admin/status", ADMIN, Host=host)
    assert status in (400, 403)
    error_of(body)
    assert (await ask(keyed, "GET", "/models", USER, Host=host or "x"))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:7000", "127.0.0.1:8000", "[::1]:7000", "192.168.1.20", "gpu.box"],
)
async def test_own_names_and_addresses_are_believed(
    backend: Backend, front: Front, settings: Settings, host: str
) -> None:
    app_of(front).state.guard = guard(settings, users=[], admins=[], allowed_hosts=["gpu.box"])
    assert (await ask(backend, "GET", "/models", Host=host))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
async def test_other_sites_page_is_no_admin(keyed: Backend, headers: dict[str, str]) -> None:
    assert (await ask(keyed, "GET", "/admin/status", ADMIN, **headers))[0] == 403


async def test_own_page_is_an_admins(keyed: Backend) -> None:
    own = {"Origin": f"http://127.0.0.1:{keyed.port}", "Sec_Fetch_Site": "same-origin"}
    assert (await ask(keyed, "GET", "/admin/status", ADMIN, **own))[0] == 200


EVERYWHERE = ["0.0.0.0", "::", "192.168.1.2", "gpu.box", ""]  # noqa: S104  to be refused


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.0.1", "::1"]))
    assert not any(map(is_loopback, EVERYWHERE))


@pytest.mark.parametrize("host", EVERYWHERE)
def test_wider_binding_needs_an_api_key(settings: Settings, host: str) -> None:
    """An admin's alone would leave the models to everybody."""
    keys = (SecretStr("key"),)
    with pytest.raises(SettingsError, match="set LLM_BACKEND_API_KEY"):
        check_bound(host, settings.model_copy(update={"admin_keys": keys}))
    check_bound(host, settings.model_copy(update={"api_keys": keys}))
    check_bound("127.0.0.1", settings)


async def test_namespace_tells_callers_apart_and_not_their_keys() -> None:
    def request(key: str) -> Request:
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        return Request({"type": "http", "headers": headers})

    names = {namespace_of(request(key)) for key in ("", USER, ADMIN)}
    assert len(names) == 3
    assert not any(key in name for key in (USER, ADMIN) for name in names)
