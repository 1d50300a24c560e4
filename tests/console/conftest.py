"""The console in a real Chromium, before a gateway, a real Switchboard and fake engines."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from deployments.host import logs
from deployments.settings import PROJECT, Settings
from deployments.switchboard.deployment import Switchboard
from serve_app.gateway.gateway import Gateway
from serve_app.ingress import build_http
from serve_app.telemetry.context import RequestFields
from tests.gateway.conftest import A, B, Front, until
from tests.gateway.conftest import front as front
from tests.gateway.conftest import settings as settings
from tests.gateway.fake_engine import FakeEngine
from tests.pure.switchboard.fake_host import FakeReplicas

CHROMIUM = Path("/usr/bin/chromium")
ARTIFACTS = PROJECT / "tests" / "artifacts"
VISION = "qwen-vl"
ANSWER = ["The capital ", "of France ", "is **Paris**", "."]
_ANSWERED_WITH_ERROR = "Failed to load resource"  # how Chromium notes any 4xx or 5xx

expect.set_options(timeout=60_000)


class Stage:
    """Three fake engines, their host, a real Switchboard, and a gateway; `qwen-14b` serves."""

    def __init__(self, front: Front, settings: Settings, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{front.port}"
        self.engines = {m: FakeEngine(str(folder / f"{m}.sock"), m) for m in (A, B, VISION)}
        self.host = FakeReplicas()
        self.host.sockets = {model: engine.path for model, engine in self.engines.items()}
        own = settings.model_copy(update={"home": folder, "default_model": A})
        self.home = folder
        self.board = Switchboard(own, self.host)
        self.gateway = Gateway(own, self.board)
        self.app = front.app = build_http(self.gateway)

    async def close(self) -> None:
        await self.gateway.close()
        await self.board.close()
        for engine in self.engines.values():
            await engine.stop()
        assert not self.host.loaded_while_other_resident


@pytest.fixture
async def stage(front: Front, settings: Settings, tmp_path: Path) -> AsyncIterator[Stage]:
    root = logging.getLogger()
    before = list(root.handlers)
    logs.write_to_file(tmp_path, "gateway", context=RequestFields())
    stage = Stage(front, settings, tmp_path)
    for engine in stage.engines.values():
        engine.tokens = ANSWER
        await engine.start()
    await until(lambda: stage.gateway.admission.is_resident(A))
    yield stage
    await stage.close()
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    if not CHROMIUM.exists():  # noqa: ASYNC240  once
        pytest.skip(f"there is no {CHROMIUM}")
    ARTIFACTS.mkdir(exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox"]
        )
        yield browser
        await browser.close()


class Visit:
    """One visitor's page, and what it must never do: fail, or ask another address."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and _ANSWERED_WITH_ERROR not in message.text:
            self.problems.append(message.text)

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.url + "/", "data:image/")):
            self.problems.append(f"another origin: {request.url}")

    async def open(self) -> None:
        await self.page.goto(self.url)

    async def ask(self, text: str, model: str | None = None) -> None:
        if model:
            await self.page.get_by_label("Model", exact=True).select_option(model)
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def shoot(self, name: str, *, full_page: bool = True) -> None:
        await self.page.screenshot(path=ARTIFACTS / f"console-{name}.png", full_page=full_page)

    def answer(self, number: int = -1) -> Any:
        return self.page.get_by_role("article").nth(number)


@pytest.fixture
async def look() -> dict[str, Any]:
    """The visitor's screen and wishes; overridden by `@pytest.mark.parametrize`."""
    return {}


@pytest.fixture
async def visit(chromium: Browser, stage: Stage, look: dict[str, Any]) -> AsyncIterator[Visit]:
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}} | look
    context = await chromium.new_context(**options)
    visit = Visit(await context.new_page(), stage.url)
    await visit.open()
    yield visit
    await context.close()
    assert not visit.problems
