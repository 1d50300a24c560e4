"""The page itself: how it is served, its key, its logs, its keyboard."""

import re
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect
from pydantic import SecretStr

from serve_app.routes.auth import Guard
from tests.console.conftest import A, B, Stage, Visit
from tests.gateway.conftest import error_of

CONSOLE = Path(__file__).parents[2] / "serve_app" / "console"
USER, ADMIN = "user-key-1", "admin-key-1"


async def test_files_come_with_their_types_and_are_asked_for_again(stage: Stage) -> None:
    """Under a policy that lets nothing in from elsewhere; unchanged, they are not sent again."""
    async with aiohttp.ClientSession(stage.url) as client:
        for path in ["/", *(f"/console/{file.name}" for file in CONSOLE.iterdir())]:
            async with client.get(path) as response:
                assert response.status == 200
                assert response.content_type.split("/")[0] in ("text", "image")
                assert response.headers["Cache-Control"] == "no-cache"
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                etag = response.headers["ETag"]
            async with client.get(path, headers={"If-None-Match": f'"x", W/{etag}'}) as response:
                assert (response.status, await response.read()) == (304, b"")
        for name in ("none.js", "..%2Ficon.svg", "%2e%2e/README.md"):
            async with client.get(f"/console/{name}") as response:
                assert response.status == 404
                error_of(await response.read())


async def test_the_description_needs_no_other_server(chromium: Browser, stage: Stage) -> None:
    """It shares the console's origin, where a key is kept: nobody else's script runs there."""
    context = await chromium.new_context()
    try:
        visit = Visit(await context.new_page(), stage.url)
        answer = await visit.page.goto(f"{stage.url}/docs")
        assert answer
        assert "script-src 'self';" in answer.headers["content-security-policy"]
        operation = visit.page.locator("[data-path='/v1/chat/completions']")
        await expect(operation).to_be_visible()
        await operation.click()
        await expect(visit.page.get_by_text("Try it out").first).to_be_visible()
        assert not visit.problems
    finally:
        await context.close()
    async with aiohttp.ClientSession(stage.url) as client, client.get("/redoc") as response:
        assert response.status == 404


def test_no_address_of_elsewhere_is_named() -> None:
    """And nothing in the page parses text as markup or code."""
    for file in CONSOLE.iterdir():
        name, text = file.name, file.read_text()
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
        assert found <= {"//www.w3.org", "http://www.w3.org"}, (name, found)
        for word in ("innerHTML", "insertAdjacentHTML", "eval(", "document.write", " style="):
            assert word not in text, (name, word)


def set_keys(stage: Stage) -> None:
    settings = stage.gateway.settings
    keys = {"api_keys": (SecretStr(USER),), "admin_keys": (SecretStr(ADMIN),)}
    stage.app.state.guard = Guard.of(settings.model_copy(update=keys))


async def give_key(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    await dialog.get_by_label("Key", exact=True).fill(key)
    await page.keyboard.press("Enter")


async def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Visit, stage: Stage) -> None:
    """A wrong one is asked for again, in the backend's words; then everything comes to life."""
    set_keys(stage)
    page = visit.page
    await page.reload()
    dialog = page.get_by_role("dialog", name="API key")
    await expect(dialog).to_be_visible()
    await visit.shoot("key", full_page=False)
    await give_key(page, "sk-wrong")
    await expect(dialog).to_contain_text("Invalid API key.")
    await give_key(page, ADMIN)
    await expect(dialog).to_be_hidden()
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Resident")
    await visit.ask("What is the capital of France?")
    await expect(visit.answer()).to_contain_text("Paris")
    await stage.board.begin_switch(B, None, None)
    await expect(page.locator("#recent li").first).to_contain_text(B)
    stored = await page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage)]")
    assert ADMIN in stored[0]
    assert ADMIN not in stored[1]
    await page.reload()
    await expect(page.locator(f"[data-model={B}]")).to_contain_text("Resident")
    await expect(dialog).to_be_hidden()
    log = (stage.home / "logs" / "gateway.log").read_text()
    assert ADMIN not in log
    assert "sk-wrong" not in log


async def test_a_users_key_chats_and_does_not_switch(visit: Visit, stage: Stage) -> None:
    """What needs an admin's key says so, where it is asked for."""
    set_keys(stage)
    page = visit.page
    await page.reload()
    await give_key(page, USER)
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Resident")
    await visit.ask("What is the capital of France?")
    await expect(visit.answer()).to_contain_text("Paris")
    await page.get_by_role("button", name=f"Switch to {B}").click()
    await expect(page.get_by_role("alert")).to_contain_text("This request needs an admin key.")
    await page.locator("#lines").scroll_into_view_if_needed()
    await expect(page.locator("#lines")).to_contain_text("This request needs an admin key.")


async def test_logs_are_read_and_followed(visit: Visit, stage: Stage) -> None:
    """Our lines in columns, an engine's as they are; the filter hides the others."""
    page = visit.page
    (stage.home / "logs" / f"{A}.log").write_text("INFO 11-22 [api_server.py:10] ready\n")
    await visit.ask("What is the capital of France?")
    await expect(visit.answer()).to_contain_text("Paris")
    lines = page.locator("#lines p:visible")
    await page.locator("#lines").scroll_into_view_if_needed()
    await page.get_by_label("Follow").check()
    await expect(lines.filter(has_text="route=/v1/chat/completions")).to_have_count(1)
    await visit.ask("And of Italy?")
    await expect(lines.filter(has_text="route=/v1/chat/completions")).to_have_count(2)
    await expect(lines.last).to_contain_text("model=qwen-14b")
    await visit.shoot("logs")
    await page.get_by_label("Show lines with").fill("chat/comp")
    assert await lines.count() == 2
    await page.get_by_label("Show lines with").fill("")
    await page.get_by_label("Service").select_option(A)
    await expect(lines).to_have_text(["INFO 11-22 [api_server.py:10] ready"])
    assert "capital" not in (stage.home / "logs" / "gateway.log").read_text()


async def test_the_keyboard_reaches_everything(visit: Visit) -> None:
    """The shortcuts that `?` lists, and an order that follows the page."""
    page, keys = visit.page, visit.page.keyboard
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Resident")
    await keys.press("?")
    help_ = page.get_by_role("dialog", name="Keyboard")
    await expect(help_).to_be_visible()
    await visit.shoot("help", full_page=False)
    await keys.press("Escape")
    await expect(help_).to_be_hidden()
    await keys.press("/")
    await expect(page.get_by_label("Message")).to_be_focused()
    await keys.press("Alt+2")
    await expect(page.get_by_label("Model", exact=True)).to_have_value(B)
    await keys.press("Alt+l")
    await expect(page.locator("#lines")).to_be_focused()
    await page.evaluate("document.activeElement.blur()")
    await page.reload()
    await expect(page.locator(f"[data-model={A}]")).to_contain_text("Resident")
    order = []
    for _ in range(12):
        await keys.press("Tab")
        order.append(
            await page.evaluate(
                "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.textContent"
            )
        )
    switches = [f"Switch to {B}", "Switch to qwen-vl"]
    wanted = [
        "Skip to the chat",
        "theme",
        "help",
        *switches,
        "messages",
        "prompt",
        "attach",
        "model",
    ]
    assert order[: len(wanted)] == wanted


@pytest.mark.parametrize("look", [{"reduced_motion": "reduce"}])
async def test_less_motion_is_none(visit: Visit, stage: Stage) -> None:
    stage.host.load.clear()
    await stage.board.begin_switch(B, None, None)
    await expect(visit.page.get_by_role("progressbar")).to_be_visible()
    names = "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).animationName)"
    assert set(await visit.page.evaluate(names)) == {"none"}
    stage.host.load.set()
