"""The console and the logs of a real server, with real engines."""

import json
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from tests.cluster.server import Server, wait_until
from tests.console.conftest import VISION, A, B, Visit
from tests.console.conftest import chromium as chromium

pytestmark = pytest.mark.timeout(600)
LOAD_MS = 240_000.0
PROMPT = "CANARY7731"


async def test_a_chat_a_switch_and_a_picture(
    server: Server, chromium: Browser, tmp_path: Path
) -> None:
    """As a visitor does it, each to its end; nothing in the page fails."""
    server.switch(A)
    context = await chromium.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(await context.new_page(), server.url)
    page = visit.page
    await visit.open()
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Resident")
    await page.get_by_label("Options").click()
    await page.get_by_label("Temperature").fill("0")
    await page.get_by_label("Longest answer").fill("24")
    await visit.ask("What is the capital of France?")
    await expect(visit.answer()).to_contain_text("Paris", timeout=LOAD_MS)
    await expect(visit.answer().locator(".meta")).to_contain_text("token", timeout=LOAD_MS)

    await page.get_by_role("button", name=f"Switch to {B}").click()
    await expect(page.get_by_role("progressbar", name=B)).to_be_visible()
    await expect(page.locator("#switch li[aria-current=step]")).to_contain_text(
        "loading", timeout=LOAD_MS
    )
    await visit.shoot("real-switching")
    await expect(page.locator("#state")).to_contain_text(f"{B} serves", timeout=LOAD_MS)
    await expect(page.locator("#recent li").first).to_contain_text(f"{A} → {B}")

    picture = tmp_path / "disc.png"
    await page.locator("#composer").screenshot(path=picture)
    await page.locator("#file").set_input_files(picture)
    await visit.ask("What is this?")
    await expect(visit.answer()).to_contain_text(f"Waiting for {VISION}", timeout=LOAD_MS)
    await visit.shoot("real-waiting")
    await expect(visit.answer().locator(".meta")).to_be_visible(timeout=LOAD_MS)
    await page.locator("#lines").scroll_into_view_if_needed()
    await expect(page.locator("#lines p").filter(has_text="/chat/completions")).not_to_have_count(0)
    await visit.shoot("real")
    await context.close()
    assert not visit.problems


def test_an_answers_name_is_in_the_log_and_its_prompt_in_none(server: Server) -> None:
    """One `X-Request-Id`, though Serve's proxy writes one too; no prompt in any file, also where
    the engine refuses it."""
    server.switch(A)
    wrong = [{"role": PROMPT, "content": PROMPT}]
    question = [{"role": "user", "content": PROMPT}]
    answers = [
        server.chat(A, messages=question),
        server.chat(A, messages=wrong, max_tokens=PROMPT),
        server.chat(A, messages=question, response_format={"type": PROMPT}),
        httpx.get(f"{server.url}/health", headers={"X-Request-Id": "shot-12"}),
    ]
    names = [answer.headers.get_list("x-request-id") for answer in answers]
    assert all(len(each) == 1 for each in names), names
    assert names[-1] == ["shot-12"]
    log = server.home / "logs" / "gateway.log"

    def line() -> dict[str, object] | None:
        lines = [json.loads(raw) for raw in log.read_text().splitlines()]
        mine = [each for each in lines if each.get("request_id") == names[0][0]]
        return next((each for each in mine if each["event"] == "request"), None)

    found = wait_until(line, 60, "the request's line is there")
    kept = ("route", "model", "status", "outcome")
    assert [found[key] for key in kept] == ["/v1/chat/completions", A, 200, "complete"]
    assert found["completion_tokens"] > 0
    for path in (server.home / "logs").iterdir():
        assert PROMPT not in path.read_text(errors="replace"), path
    for service in ("gateway", "switchboard", "serve", A, "all"):
        answer = httpx.get(f"{server.url}/admin/logs/{service}?lines=5")
        assert answer.status_code == 200
        assert answer.text, service
