"""What the page shows of a server at work."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from support.live_page import steady_load
from support.servers import Server, wait_for

pytestmark = pytest.mark.page

# How many pixels of the map have the colour of held blocks.
HELD_PIXELS = """() => {
  const pool = document.getElementById("pool");
  // A copy, since reading from it would change how the page's own is kept.
  const canvas = new OffscreenCanvas(pool.width, pool.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(pool, 0, 0);
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--kv-held").trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let at = 0; at < data.length; at += 4) found += data[at] === r && data[at + 1] === g && data[at + 2] === b;
  return found;
}"""


def count_of(page: Page, kind: str) -> int:
    text = page.locator(f"#pool-legend [data-kind={kind}] b").inner_text()
    return int(text.replace(",", "")) if text != "–" else -1


def figure(page: Page, title: str, name: str) -> str:
    chart = page.locator(".chart", has=page.get_by_role("heading", name=re.compile(f"^{title}")))
    return chart.locator(".values > div", has_text=name).locator("dd").inner_text()


def test_a_server_at_work_and_at_rest(page: Page, server: Server) -> None:
    expect(page.locator("#feed-status")).to_have_text("live")
    with steady_load(server.url, users=4):
        wait_for(lambda: count_of(page, "held") + count_of(page, "shared2") > 20, 60)
        wait_for(lambda: page.evaluate(HELD_PIXELS) > 20, 60)
        assert page.locator("#requests tr").count() > 0
        # Charts move.
        wait_for(lambda: float(figure(page, "Throughput", "generation").replace(",", "").replace("–", "0")) > 0, 60)
        wait_for(lambda: figure(page, "Requests", "running") == "4", 60)
        wait_for(lambda: figure(page, "KV usage", "held") not in ("–", "0 %"), 60)
        wait_for(lambda: figure(page, "Time to first token", "p50").endswith("s"), 60)
        wait_for(lambda: figure(page, "Inter-token latency", "p95").endswith("s"), 60)
    wait_for(lambda: count_of(page, "held") == 0, 60)
    assert count_of(page, "cached") > 0
    wait_for(lambda: page.evaluate(HELD_PIXELS) == 0, 60)
    expect(page.locator("#requests tr")).to_have_count(0)
    expect(page.locator("#requests-hint")).to_be_visible()


def test_the_block_table_of_a_chosen_request(page: Page, server: Server) -> None:
    """As it grows. A request that ends meanwhile is followed by another."""
    table, chosen = page.locator("#pool-table"), page.locator("#requests tr.chosen button[aria-pressed=true]")
    told: dict[str, set[str]] = {}

    def has_grown() -> bool:
        name, _, blocks = table.inner_text().partition(": ")
        if blocks:
            assert re.fullmatch(r"\d+ blocks?: [\d, …]+", blocks)
            told.setdefault(name, set()).add(blocks)
        elif page.locator("#requests button").count():
            page.evaluate("document.querySelector('#requests button')?.focus()")
            page.keyboard.press("Enter")
        return any(len(tables) > 1 for tables in told.values()) and chosen.count() == 1

    with steady_load(server.url, users=1):
        wait_for(has_grown, 60)
    expect(table).to_have_text("The chosen request has ended.")
    expect(chosen).to_have_count(0)


def test_a_block_tells_who_holds_it(page: Page, server: Server) -> None:
    with steady_load(server.url, users=1):
        wait_for(lambda: count_of(page, "held") > 0, 60)
        state = server.kv_state()
        block = state.sequences[0].block_ids[0]
        box = page.locator("#pool").bounding_box()
        assert box is not None
        corner = """([count, width, height, block]) => import("/page/pool_layout.js").then(({ layout, corner }) =>
          corner(layout(count, width, height), block))"""
        x, y = page.evaluate(corner, [state.num_blocks, box["width"], box["height"], block])
        page.locator("#pool").hover(position={"x": x + 1, "y": y + 1})
        told = re.compile(rf"^Block {block}: held by one · chatcmpl-.* as block 1$")
        expect(page.locator("#pool-block")).to_have_text(told)
        expect(page.locator("#pool")).to_have_attribute("aria-valuetext", told)
        expect(page.locator("#pool")).to_have_attribute("aria-valuenow", str(block))
