"""Watching a switch in the console, and making one."""

import json
from typing import Any

import pytest
from playwright.async_api import Request, expect

from deployments.residency import Problem
from tests.console.conftest import VISION, A, B, Stage, Visit
from tests.gateway.conftest import Front, until

DARK = {"color_scheme": "dark"}
CUT = Problem("load_failed", "the weights of qwen-coder are cut short: 3.1 of 5.2 GB are there")


async def test_a_switch_is_seen_to_its_end(visit: Visit, stage: Stage) -> None:
    """Each phase as it comes, and then the model that serves; it is the last in the list."""
    page = visit.page
    stage.host.unload.clear()
    stage.host.load.clear()
    await page.get_by_role("button", name=f"Switch to {B}").click()
    step = page.locator("#switch li[aria-current=step]")
    await expect(step).to_contain_text("unloading")
    stage.host.unload.set()
    await expect(step).to_contain_text("loading")
    await expect(page.locator("#state")).to_contain_text(f"Switching to {B}")
    await visit.shoot("switching")
    stage.host.load.set()
    await expect(page.locator("#state")).to_contain_text(f"{B} serves")
    await expect(page.locator("#switch")).to_be_hidden()
    await expect(page.locator(f"[data-model={B}]")).to_contain_text("Resident")
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Not resident")
    await expect(page.locator("#recent li").first).to_contain_text(f"{A} → {B}")
    await expect(page.locator("#live")).to_contain_text(f"{B}: serves")


async def test_a_switch_that_somebody_else_makes_is_seen_too(visit: Visit, stage: Stage) -> None:
    """From the events: nobody has to ask again."""
    await expect(visit.page.locator("#state")).to_contain_text(f"{A} serves")
    stage.host.load.clear()
    await stage.board.begin_switch(VISION, None, None)
    await expect(visit.page.get_by_role("progressbar", name=VISION)).to_be_visible()
    stage.host.load.set()
    await expect(visit.page.locator("#state")).to_contain_text(f"{VISION} serves")


async def test_a_failed_switch_says_why_and_what_serves_now(visit: Visit, stage: Stage) -> None:
    """And can be tried again."""
    page = visit.page
    stage.host.faults[B].append(CUT)
    await page.get_by_role("button", name=f"Switch to {B}").click()
    box = page.locator("#switch")
    await expect(box).to_contain_text(f"{B} could not be loaded")
    await expect(box).to_contain_text("The weights of qwen-coder are cut short")
    await expect(box).to_contain_text(f"{A} serves again")
    await expect(page.locator("#state")).to_contain_text(f"{A} serves")
    await expect(page.locator("#recent li").first).to_contain_text("cut short")
    await visit.shoot("failed")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#state")).to_contain_text(f"{B} serves")
    await expect(box).to_be_hidden()


async def test_a_switch_that_disturbs_others_is_confirmed(visit: Visit, stage: Stage) -> None:
    """What ends first, and whose lease, is said before anything happens."""
    page = visit.page
    await stage.board.lease(A, 600, "ana")
    stage.engines[A].next_token.clear()
    await visit.ask("What is the capital of France?")
    await until(lambda: stage.board._runner.machine.num_in_flight() or _poke(stage))
    await page.get_by_role("button", name=f"Switch to {B}").click()
    card = page.locator(f"[data-model={B}]")
    await expect(card).to_contain_text("The lease of ana on qwen-14b ends.")
    await visit.shoot("confirm")
    await page.get_by_role("button", name="Not now").click()
    await expect(card.locator(".confirm")).to_be_hidden()
    assert stage.host.loads == [A]
    stage.engines[A].next_token.set()
    await expect(visit.answer()).to_contain_text("Paris")


def _poke(stage: Stage) -> int:
    """A gateway reports what flies only when it matters; here it is asked to."""
    stage.gateway.admission.changed.set()
    return 0


async def test_events_that_were_missed_are_caught_up_with(
    visit: Visit, stage: Stage, front: Front
) -> None:
    """The stream breaks, a switch begins and ends meanwhile; the page comes again with its last
    id, and knows."""
    last: list[str | None] = []

    def note(request: Request) -> None:
        if request.url.endswith("/admin/events"):
            last.append(request.headers.get("last-event-id"))

    await expect(visit.page.locator("#state")).to_contain_text(f"{A} serves")
    visit.page.on("request", note)
    await visit.page.context.set_offline(True)
    for connection in list(front.server.server_state.connections):
        connection.transport.close()  # type: ignore[union-attr]  uvicorn's own, all have one
    await expect(visit.page.locator("#state")).to_contain_text("does not answer")
    await stage.board.begin_switch(B, None, 5)
    await visit.page.context.set_offline(False)
    await expect(visit.page.locator("#state")).to_contain_text(f"{B} serves")
    await expect(visit.page.locator("#recent li").first).to_contain_text(f"{A} → {B}")
    assert stage.board._runner.boot in (last[-1] or "")


@pytest.mark.parametrize("look", [DARK])
async def test_the_dark_is_as_complete(visit: Visit, stage: Stage) -> None:
    """By the system's wish, or the button's."""
    page = visit.page
    ground = "getComputedStyle(document.body).backgroundColor"
    assert await page.evaluate(ground) == "rgb(16, 19, 21)"
    stage.host.load.clear()
    await visit.ask("What is the capital of France?")
    await expect(visit.answer()).to_contain_text("Paris")
    await stage.board.begin_switch(B, None, None)
    await expect(page.get_by_role("progressbar")).to_be_visible()
    await visit.shoot("dark")
    stage.host.load.set()
    await page.get_by_role("button", name="Colours: auto").click()
    assert await page.evaluate(ground) == "rgb(244, 245, 243)"
    await page.reload()
    assert await page.evaluate(ground) == "rgb(244, 245, 243)"


GPU: dict[str, Any] = {
    "name": "NVIDIA GeForce RTX 5080",
    "driver": "580.1",
    "total_bytes": 17094934528,
    "used_bytes": 16441000000,
    "free_bytes": 653934528,
    "utilization_percent": 97,
    "temperature_c": 71,
    "power_w": 312.4,
    "alarm": True,
}


async def test_the_card_and_its_alarm_are_shown(visit: Visit) -> None:
    """Without one, that is said."""
    await expect(visit.page.locator("#gpu")).to_contain_text("No GPU")

    async def with_card(route: Any) -> None:
        response = await route.fetch()
        health = await response.json() | {"gpu": GPU}
        await route.fulfill(response=response, body=json.dumps(health))

    await visit.page.route("**/health", with_card)
    await expect(visit.page.get_by_role("meter", name="GPU memory")).to_be_visible()
    await expect(visit.page.locator("#gpu")).to_contain_text("15.3 of 15.9 GiB · 96 %")
    await expect(visit.page.locator("#gpu")).to_contain_text("71 °C")
    await expect(visit.page.get_by_role("alert").filter(has_text="95 %")).to_be_visible()
    await visit.shoot("gpu")
    await visit.page.unroute("**/health")
