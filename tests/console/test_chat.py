"""Chatting in the console."""

import asyncio
import json
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from tests.console.conftest import VISION, A, B, Stage, Visit
from tests.gateway.conftest import until
from tests.gateway.fake_engine import Fault

PHONE = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> [x](javascript:alert(3))"
CODE = [
    "Here is one:\n\n```python\n",
    "def render(shot: str) -> None:\n    print(f'rendering {shot}')\n",
    "```\n\n- first the *cheap* pass\n- then the **final** one\n\nCall `render` once a shot.",
]
GIVE_PICTURE = """async ([kind, name]) => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 40});
    const blob = await new Promise(done => canvas.toBlob(done));
    const data = new DataTransfer();
    data.items.add(new File(name === 'x' ? ['x'] : [blob], name, {type: 'image/png'}));
    const box = document.getElementById('prompt');
    const event = kind === 'paste'
      ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
      : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
    box.dispatchEvent(event); }"""


async def test_a_question_is_answered(visit: Visit) -> None:
    """Enter sends; the answer is rendered, with what it took under it."""
    box = visit.page.get_by_label("Message")
    await expect(visit.page.get_by_label("Model", exact=True)).to_have_value(A)
    await box.fill("What is the capital of France?")
    await box.press("Enter")
    await expect(visit.answer()).to_contain_text("The capital of France is Paris.")
    await expect(visit.answer().locator("strong")).to_have_text("Paris")
    await expect(visit.answer().locator(".meta")).to_contain_text(" s")
    await expect(box).to_have_value("")
    await visit.shoot("chat")


async def test_shift_enter_is_a_new_line_and_what_was_said_is_sent_again(
    visit: Visit, stage: Stage
) -> None:
    """The engine gets the conversation, the system prompt before it, and the wishes."""
    page, box = visit.page, visit.page.get_by_label("Message")
    await page.get_by_label("Options").click()
    await visit.shoot("options", full_page=False)
    await page.get_by_label("System prompt").fill("Be brief.")
    await page.get_by_label("Temperature").fill("0")
    await page.get_by_label("Longest answer").fill("64")
    await box.fill("one")
    await box.press("Shift+Enter")
    await box.press_sequentially("two")
    await expect(page.get_by_role("button", name="Send")).to_be_enabled()
    await box.press("Enter")
    await expect(visit.answer().locator(".meta")).to_be_visible()
    await visit.ask("three")
    await expect(visit.answer(1).locator(".meta")).to_be_visible()
    body = json.loads(stage.engines[A].bodies[-1])
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in body["messages"]][:2] == ["Be brief.", "one\ntwo"]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 64, True)


async def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(
    visit: Visit, stage: Stage
) -> None:
    """Esc ends it: what has come stays, the engine is told, and one can go on."""
    engine = stage.engines[A]
    engine.next_token.clear()
    await visit.ask("What is the capital of France?")
    await expect(visit.page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(visit.answer()).to_contain_text("reads")
    engine.next_token.set()
    await expect(visit.answer()).to_contain_text("Paris")
    engine.tokens = ["Once upon", " a time", *[" and then"] * 200_000]
    await visit.ask("Tell me a story")
    await expect(visit.answer()).to_contain_text("Once upon a time")
    await visit.page.keyboard.press("Escape")
    await expect(visit.answer().locator(".meta")).to_contain_text("stopped")
    async with asyncio.timeout(60):
        await engine.aborted.acquire()
    await until(lambda: not stage.gateway.admission.num_in_flight)
    await expect(visit.page.get_by_role("button", name="Send")).to_be_visible()


async def test_a_question_to_an_absent_model_tells_what_it_waits_for(
    visit: Visit, stage: Stage
) -> None:
    """The phase and the time, from the heartbeats' first sign to the answer."""
    stage.host.load.clear()
    await visit.ask("Write a loop", model=B)
    await expect(visit.answer()).to_contain_text(f"Waiting for {B}: loading")
    await visit.shoot("waiting")
    stage.host.load.set()
    await expect(visit.answer()).to_contain_text("Paris")


async def test_code_and_lists_are_rendered_and_code_can_be_copied(
    visit: Visit, stage: Stage
) -> None:
    stage.engines[A].tokens = CODE
    await visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visit.ask("Show me some Python")
    await expect(visit.answer().locator("li")).to_have_count(2)
    await visit.page.get_by_role("button", name="Copy").click()
    await expect(visit.page.get_by_role("button", name="Copied")).to_be_visible()
    assert await visit.page.evaluate("navigator.clipboard.readText()") == CODE[1].rstrip("\n")
    await visit.shoot("code")


async def test_what_a_model_writes_is_never_markup(visit: Visit, stage: Stage) -> None:
    """Nor what a user writes: text stays text, and only web addresses become links."""
    stage.engines[A].tokens = [HOSTILE]
    await visit.ask(HOSTILE)
    await expect(visit.answer()).to_contain_text("<script>alert(2)</script>")
    for name in ("img", "script", "a"):
        assert await visit.page.locator(f"#messages {name}").count() == 0


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.ERROR_EVENT, Fault.DEAD])
async def test_an_answer_that_breaks_says_why(visit: Visit, stage: Stage, fault: Fault) -> None:
    """What had come stays in sight; the question can be asked again, not burdened with it."""
    stage.engines[A].fault = fault
    await visit.ask("What is the capital of France?")
    await expect(visit.answer().get_by_role("alert")).to_be_visible()
    await visit.shoot(f"broken-{fault}")
    stage.engines[A].fault = None
    await visit.page.get_by_role("button", name="Ask again").click()
    await expect(visit.answer(1)).to_contain_text("Paris")
    body = json.loads(stage.engines[A].bodies[-1])
    assert [m["role"] for m in body["messages"]] == ["user"]


async def test_a_picture_is_asked_about(visit: Visit, stage: Stage, tmp_path: Path) -> None:
    """It is made small, the model that sees is chosen, and the engine gets a data address."""
    picture = tmp_path / "disc.png"
    canvas = "Object.assign(document.createElement('canvas'), {width: 2400, height: 1200})"
    draw = """canvas => { const c = canvas.getContext('2d'); c.fillStyle = '#d22';
        c.arc(1200, 600, 500, 0, 7); c.fill(); return canvas.toDataURL('image/png') }"""
    address = await visit.page.evaluate(f"({draw})({canvas})")
    picture.write_bytes(await _bytes_of(address))
    await visit.page.locator("#file").set_input_files(picture)
    await expect(visit.page.get_by_role("img", name="Picture 1")).to_be_visible()
    await expect(visit.page.get_by_label("Model", exact=True)).to_have_value(VISION)
    stage.engines[VISION].tokens = ["A red disc ", "on white."]
    await visit.ask("What is this?")
    await expect(visit.answer()).to_contain_text("A red disc on white.")
    image, text = json.loads(stage.engines[VISION].bodies[-1])["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    url = image["image_url"]["url"]
    size = await visit.page.evaluate(
        "async url => { const i = new Image(); i.src = url; await i.decode();"
        " return [i.naturalWidth, i.naturalHeight] }",
        url,
    )
    assert (url[:23], size) == ("data:image/jpeg;base64,", [1024, 512])
    await visit.shoot("picture")


async def test_who_is_early_waits_for_the_models_names(visit: Visit, stage: Stage) -> None:
    """A question is sent once, when there is a model to send it to; a picture finds who sees."""
    named = asyncio.Event()

    async def hold(route: Route) -> None:
        await named.wait()
        await route.continue_()

    await visit.page.route("**/v1/models", hold)
    await visit.open()
    send = visit.page.get_by_role("button", name="Send")
    await visit.page.evaluate(GIVE_PICTURE, ["paste", "a.png"])
    await expect(visit.page.get_by_role("img", name="Picture 1")).to_be_visible()
    await expect(send).to_be_disabled()
    asking = asyncio.create_task(visit.ask("What is this?"))
    named.set()
    await asking
    await expect(visit.answer()).to_have_attribute("aria-label", f"Answer of {VISION}")
    await expect(visit.answer()).to_contain_text("Paris")
    assert len(stage.engines[VISION].bodies) == 1


async def test_a_picture_can_be_pasted_and_dropped_and_taken_back(visit: Visit) -> None:
    """Two at most, as the model's settings allow; what is no picture is refused in words."""
    chosen = visit.page.locator("#pictures figure")
    for number, kind in enumerate(["paste", "drop"], 1):
        await visit.page.evaluate(GIVE_PICTURE, [kind, "a.png"])
        await expect(chosen).to_have_count(number)
    await visit.page.evaluate(GIVE_PICTURE, ["paste", "b.png"])
    await expect(visit.page.get_by_role("alert")).to_contain_text("At most 2")
    await visit.page.get_by_role("button", name="Remove picture 1").click()
    await expect(chosen).to_have_count(1)
    await visit.page.evaluate(GIVE_PICTURE, ["paste", "x"])
    await expect(visit.page.get_by_role("alert")).to_contain_text("not a picture")


@pytest.mark.parametrize("look", [PHONE])
async def test_a_phone_scrolls_one_way_only(visit: Visit, stage: Stage) -> None:
    """360 px hold everything, a long word, code and a running switch included."""
    stage.engines[A].tokens = [*CODE, "\n\n" + "x" * 200]
    await visit.ask("Show me " + "y" * 100)
    await expect(visit.answer().locator(".meta")).to_be_visible()
    await visit.shoot("phone")
    stage.host.load.clear()
    await visit.page.get_by_role("button", name=f"Switch to {B}").click()
    await expect(visit.page.get_by_role("progressbar")).to_be_visible()
    await visit.shoot("phone-switching")
    width = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert await visit.page.evaluate(width) == [360, 360]
    stage.host.load.set()


async def _bytes_of(address: str) -> bytes:
    import base64

    return base64.b64decode(address.partition(",")[2])
