"""Takes the pictures of the live page in docs/images, of a real server under a little load.

To be run as `PYTHONPATH=tests .venv/bin/python tools/screenshots.py`, after tools/install_chromium.sh.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.live_page import TIMEOUT_MS, launch, steady_load, watched_page
from support.servers import running_server

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images"
# Documents are read over slow lines too.
MAX_BYTES = 300_000
# Until the charts have something to show.
WARM_UP_MS = 45_000


@dataclass(frozen=True)
class Picture:
    """A picture: its name, its theme and its size in pixels."""

    name: str
    theme: str
    width: int
    height: int


PICTURES = (
    Picture("page-light-1440", "light", 1440, 1290),
    Picture("page-dark-1440", "dark", 1440, 1290),
    Picture("page-375", "light", 375, 1500),
)


def main() -> None:
    """Takes all pictures at once, since their charts need the same time."""
    TARGET.mkdir(exist_ok=True)
    expect.set_options(timeout=TIMEOUT_MS)
    with running_server() as server, sync_playwright() as playwright:
        browser = launch(playwright)
        with contextlib.ExitStack() as stack:
            pages = [stack.enter_context(_open(browser, server.url, picture)) for picture in PICTURES]
            with steady_load(server.url, users=2, max_tokens=600):
                pages[0].wait_for_timeout(WARM_UP_MS)
                with steady_load(server.url, users=3, max_tokens=1500):
                    pages[0].wait_for_timeout(WARM_UP_MS)
                    for page, picture in zip(pages, PICTURES, strict=True):
                        _take(page, TARGET / f"{picture.name}.png")
        browser.close()


@contextlib.contextmanager
def _open(browser: Browser, url: str, picture: Picture) -> Iterator[Page]:
    size = {"width": picture.width, "height": picture.height}
    with watched_page(browser, url, color_scheme=picture.theme, viewport=size) as watched:
        watched.page.goto("/")
        yield watched.page
        assert watched.problems == []


def _take(page: Page, path: Path) -> None:
    page.get_by_label("Temperature").fill("0.3")
    for question in ("What is the capital of France?", "Tell me about the sea."):
        page.get_by_label("Message").fill(question)
        page.get_by_label("Message").press("Enter")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    while page.locator("#requests tr.chosen").count() == 0:  # one may end while it is chosen
        page.evaluate("document.querySelector('#requests tr:last-child button')?.click()")
        page.wait_for_timeout(1200)  # two more states
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.locator(".token").nth(3).hover()
    page.screenshot(path=path, animations="disabled")
    size = path.stat().st_size
    assert size <= MAX_BYTES, f"{path} has {size} bytes"
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")


if __name__ == "__main__":
    main()
