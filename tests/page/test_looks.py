"""How the page looks and how it is used without a pointer: widths, themes, accessibility, the order of Tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from support.live_page import server_state, watched_page
from support.servers import Server

from quire.columns import pack_u32
from quire.v1 import monitor_pb2

pytestmark = pytest.mark.page

# WCAG 2.2's rules as far as a program can check them (https://github.com/dequelabs/axe-core).
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
WIDTHS = (375, 768, 1440)


def fill(page: Page, push: Callable[[dict[str, Any]], None]) -> None:
    """Something of everything: an answer, requests, all kinds of blocks, a chosen request."""
    running = monitor_pb2.SequenceState(
        request_id="chatcmpl-0123456789abcdef", status="running", block_ids=pack_u32([2, 3]), tenant="somebody"
    )
    push(server_state(bytes([0, 1, 2, 3, 4, 6] * 50), sequences=[running]))
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".stats")).to_contain_text("complete")
    page.locator("#requests button").click()
    page.locator(".token").first.focus()
    expect(page.get_by_role("tooltip")).to_be_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(fed: Page, push: Any, width: int) -> None:
    fed.set_viewport_size({"width": width, "height": 800})
    fill(fed, push)
    fed.evaluate("document.fonts.ready")
    assert fed.evaluate("document.documentElement.scrollWidth") == width
    for part in (".chat", "#charts", "#pool", "#requests-box", "#token-tip", "#composer"):
        box = fed.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_the_systems_until_it_is_chosen(browser: Browser, server: Server, theme: Any) -> None:
    with watched_page(browser, server.url, color_scheme=theme) as watched:
        page = watched.page
        page.goto("/")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in background.strip("rgb()").split(",")) > 384) == (theme == "light")
        other = "dark" if theme == "light" else "light"
        page.get_by_role("button", name=other.capitalize()).click()
        expect(page.locator("html")).to_have_attribute("data-theme", other)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", other)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_accessibility(fed: Page, push: Any, theme: Any, width: int) -> None:
    fed.emulate_media(color_scheme=theme)
    fed.set_viewport_size({"width": width, "height": 900})
    fill(fed, push)
    fed.evaluate(AXE.read_text())
    run = "axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice'] })"
    found = fed.evaluate(f"{run}.then(({{ violations, passes }}) => ({{ violations, passes: passes.length }}))")
    assert found["passes"] > 20
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]] == []
    fed.get_by_role("button", name="API key").click()
    again = fed.evaluate(f"{run}.then(({{ violations }}) => violations.map(({{ id }}) => id))")
    assert again == []


def test_a_walk_by_keyboard(fed: Page, push: Any) -> None:
    push(server_state(bytes([2] * 20), sequences=[monitor_pb2.SequenceState(request_id="one", status="running")]))
    expect(fed.locator("#requests button")).to_have_text("one")
    seen = []
    for _ in range(40):
        fed.keyboard.press("Tab")
        if fed.evaluate("document.activeElement === document.body"):
            break
        seen.append(fed.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert fed.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus can be seen
    expected = ["key-button", "theme-button", "model", "temperature", "max-tokens", "system", "messages", "prompt"]
    expected += ["send", "pool", "requests-box", "one"]
    assert [name for name in seen if name in expected] == expected
    assert seen[0] == "Skip to the server"


def test_the_dialog_by_keyboard(page: Page) -> None:
    page.get_by_role("button", name="API key").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="API key")).to_be_focused()


def test_less_motion(browser: Browser, server: Server) -> None:
    with watched_page(browser, server.url, reduced_motion="reduce") as watched:
        watched.page.goto("/")
        moving = """[...document.querySelectorAll("*")].filter((one) => {
          const style = getComputedStyle(one);
          const changes = style.transitionDuration !== "0s" && style.transitionProperty !== "all";
          return style.animationName !== "none" || changes;
        }).length"""
        assert watched.page.evaluate(moving) == 0
