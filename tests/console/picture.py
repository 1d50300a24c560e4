"""Takes the README's picture of the console: `python -m tests.console.picture [URL]`.

The server at URL runs; it is made to switch from one model to another."""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from serve_app.client.llm_client import DEFAULT_URL

PICTURE = Path(__file__).with_name("console.png")
SIZE = {"width": 1100, "height": 800}
NUM_COLOURS = 64  # a page of text and lines needs no more, and the file has a third of the bytes


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(url)
        page.get_by_label("Message").fill("What is the capital of France?")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("article").get_by_text("Paris").wait_for()
        picture = _while_switching(page, url)
        browser.close()
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(NUM_COLOURS)
    image.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size >> 10} KiB")


def _while_switching(page: Page, url: str) -> bytes:
    """Ask for the model that is not resident, and look once it loads."""
    resident = page.request.get(f"{url}/health").json()["resident"]
    wanted = "qwen-vl" if resident != "qwen-vl" else "qwen-coder"
    page.request.post(f"{url}/admin/switch", data={"model": wanted})
    page.locator("#models").get_by_text("Loading", exact=True).wait_for(timeout=60_000)
    return page.screenshot()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL)
