"""Health, models and the admin's routes, in every state."""

import asyncio
from datetime import UTC
from typing import Any

import anthropic
import pytest
from ray.exceptions import RayTaskError

from deployments.memory.gpu_watch import GpuState
from deployments.memory.nvml import GpuProcess, GpuReading
from deployments.residency import State
from deployments.switchboard.errors import UnknownTicketError
from tests.gateway.conftest import A, B, Backend, error_of, until

MODELS = {A, B, "qwen-vl"}


async def get(backend: Backend, path: str) -> tuple[int, Any]:
    async with backend.client.get(path) as response:
        return response.status, await response.json()


async def test_health_tells_the_truth_in_every_state(backend: Backend) -> None:
    """Always 200; ready only while a model answers."""
    switch = {"id": "sw-1", "from": A, "to": B, "phase": "loading"}
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({}, "idle", None),
        ({"switch": switch}, "switching", None),
        ({"switch": None, "state": State.SERVING, "holder": A, "epoch": 1}, "serving", A),
        ({"state": State.DRAINING, "switch": switch}, "switching", A),
        ({"state": State.LOADING, "holder": B, "epoch": 2}, "switching", None),
        (
            {"state": State.EMPTY, "holder": None, "switch": None, "place_failed": True},
            "failed",
            None,
        ),
    ]
    for changes, state, resident in cases:
        await backend.show(**changes)
        status, health = await get(backend, "/health")
        assert status == 200
        assert (health["status"], health["state"], health["resident"]) == ("ok", state, resident)
        assert health["epoch"] == backend.switchboard.view.epoch
        status, ready = await get(backend, "/health/ready")
        assert status == (200 if resident else 503)
        assert ready == health


async def test_health_shows_the_card_and_its_alarm(backend: Backend) -> None:
    """Null where there is none; never who holds it."""
    _, health = await get(backend, "/health")
    assert health["gpu"].pop("alarm") is False
    assert set(health["gpu"].values()) == {None}
    reading = GpuReading(total_bytes=100, used_bytes=96, processes=(GpuProcess(7, "blender", 96),))
    await backend.show(gpu=GpuState(reading, is_alarming=True))
    _, health = await get(backend, "/health")
    assert (health["gpu"]["used_bytes"], health["gpu"]["alarm"]) == (96, True)
    assert "blender" not in str(health)


async def test_health_counts_what_is_in_flight_and_queued(backend: Backend) -> None:
    """The same numbers that admission goes by."""
    engine = await backend.serving()
    engine.first_byte.clear()
    asking = [backend.asking() for _ in range(3)]
    await until(lambda: engine.num_running == 2 and backend.admission.num_queued == 1)
    _, health = await get(backend, "/health")
    assert (health["in_flight"], health["queued"]) == (2, 1)
    engine.first_byte.set()
    assert [(await task)[0] for task in asking] == [200] * 3


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
async def test_all_models_are_listed_with_where_they_stand(backend: Backend, path: str) -> None:
    """OpenAI's shape, and beside it what is behind the name."""
    await backend.fail("qwen-vl", seq=1)
    for state, word in [
        (State.LOADING, "loading"),
        (State.VERIFYING, "loading"),
        (State.SERVING, "resident"),
        (State.DRAINING, "resident"),
        (State.UNLOADING, "absent"),
    ]:
        await backend.show(state=state, holder=A)
        status, listed = await get(backend, path)
        assert status == 200
        assert listed["object"] == "list"
        models = {model["id"]: model for model in listed["data"]}
        assert set(models) == MODELS
        assert {m["object"] for m in models.values()} == {"model"}
        assert all(isinstance(m["created"], int) and m["owned_by"] for m in models.values())
        assert all(m["max_model_len"] > 0 and m["root"] for m in models.values())
        assert models[A]["status"] == word
        assert models[B]["status"] == "absent"
        assert models["qwen-vl"]["status"] == "failed"
        assert "weights are cut short" in models["qwen-vl"]["reason"]


async def test_a_model_that_sleeps_says_so(backend: Backend) -> None:
    """Whichever of its tasks the sleeping engine has."""
    await backend.show(state=State.SERVING, holder=A, asleep=("qwen-vl:embed",))
    assert (await get(backend, "/v1/models/qwen-vl"))[1]["status"] == "asleep"
    assert (await get(backend, f"/v1/models/{A}"))[1]["status"] == "resident"


async def test_the_resident_task_is_told(backend: Backend) -> None:
    """A model that embeds is resident, and says that it does not chat."""
    await backend.show(state=State.SERVING, holder="qwen-vl:embed")
    health = (await get(backend, "/health"))[1]
    assert (health["resident"], health["task"]) == ("qwen-vl", "embed")
    model = (await get(backend, "/v1/models/qwen-vl"))[1]
    assert (model["status"], model["task"]) == ("resident", "embed")
    assert model["tasks"] == ["generate", "embed"]


@pytest.mark.parametrize("path", ["/admin/switch", "/admin/lease"])
async def test_a_task_is_a_target_of_its_own(backend: Backend, path: str) -> None:
    """And one that a model does not have is refused by name."""
    backend.switchboard.answer = {"state": "running", "ticket": {"state": "running"}}
    more = {"seconds": 60, "owner": "me"} if path.endswith("lease") else {}
    wish = {"model": "qwen-vl", "task": "embed"} | more
    async with backend.client.post(path, json=wish) as response:
        assert response.status == 202
    assert backend.switchboard.targets == ["qwen-vl:embed"]
    async with backend.client.post(path, json=wish | {"model": A}) as response:
        assert response.status == 400
        assert "cannot embed; it can generate" in error_of(await response.read())["message"]


async def test_one_model_is_what_the_list_says_of_it(backend: Backend) -> None:
    """And an unknown one is 404."""
    await backend.serving(A)
    _, listed = await get(backend, "/v1/models")
    for model in listed["data"]:
        assert await get(backend, f"/v1/models/{model['id']}") == (200, model)
    async with backend.client.get("/v1/models/nope") as response:
        assert response.status == 404
        assert error_of(await response.read())["code"] == "model_not_found"


async def test_anthropic_s_client_reads_the_models(backend: Backend) -> None:
    """Every field that its types ask for; and it knows by its own error that one is not there."""
    address = f"http://127.0.0.1:{backend.port}"
    async with anthropic.AsyncAnthropic(
        base_url=address, api_key="x", max_retries=0, _strict_response_validation=True
    ) as claude:
        listed = [model async for model in claude.models.list()]
        one = await claude.models.retrieve(B)
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await claude.models.retrieve("nope")
    assert {model.id for model in listed} == MODELS
    assert one in listed
    assert (one.display_name, one.created_at.tzinfo) == (B, UTC)
    assert one.max_input_tokens == backend.gateway.settings.models[B].engine.max_model_len
    assert isinstance(unknown.value.body, dict)
    assert unknown.value.body["error"]["type"] == "not_found_error"


async def test_the_list_for_anthropic_is_one_page(backend: Backend) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    async with backend.client.get("/v1/models", headers=headers) as response:
        page = await response.json()
    ids = [model["id"] for model in page.pop("data")]
    assert page == {"has_more": False, "first_id": ids[0], "last_id": ids[-1]}


@pytest.mark.parametrize(
    ("state", "status"), [("running", 202), ("done", 200), ("rolled_back", 503), ("failed", 503)]
)
async def test_a_switch_answers_with_its_ticket(backend: Backend, state: str, status: int) -> None:
    """The status says how it ended, or that it has not yet."""
    backend.switchboard.answer = {"id": "sw-1", "state": state}
    wish = {"model": B, "drain_timeout_s": 0, "wait": state != "running"}
    async with backend.client.post("/admin/switch", json=wish) as response:
        assert response.status == status
        assert await response.json() == backend.switchboard.answer
    [(model, drain_timeout_s, wait_s)] = backend.switchboard.switches
    assert (model, drain_timeout_s) == (B, 0)
    assert (wait_s is None) == (state == "running")


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({}, 400),
        ({"model": [B]}, 400),
        ({"model": B, "trust_remote_code": True}, 400),
        ({"model": B, "drain_timeout_s": -1}, 400),
        ({"model": B, "drain_timeout_s": "5"}, 400),
        ({"model": B, "wait": "yes"}, 400),
        ({"model": "../../x"}, 404),
    ],
)
async def test_a_bad_switch_is_refused(backend: Backend, wish: object, status: int) -> None:
    """The Switchboard never hears of it."""
    async with backend.client.post("/admin/switch", json=wish) as response:
        assert response.status == status
        error_of(await response.read())
    assert not backend.switchboard.switches


async def test_an_error_of_the_switchboard_keeps_its_meaning(backend: Backend) -> None:
    """Raised behind a process border, it comes back as itself, without the remote traceback."""
    cause = UnknownTicketError("There is no such ticket.")
    backend.switchboard.answer = RayTaskError("f", "Traceback ...", cause).as_instanceof_cause()
    async with backend.client.get("/admin/switch/sw-9") as response:
        assert response.status == 404
        assert error_of(await response.read())["message"] == "There is no such ticket."


async def test_a_switchboard_that_does_not_answer_is_503(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call to a deployment with no replica waits for ever; an admin does not."""
    monkeypatch.setattr("serve_app.gateway.switchboard_client.ANSWER_S", 0.05)

    async def status() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    backend.switchboard.status = status  # type: ignore[method-assign]
    async with backend.client.get("/admin/status") as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        error_of(await response.read())
