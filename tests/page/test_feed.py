"""States that a test gives: pools of all sizes, and what stands in the way of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from support.live_page import FAKE_FEED, server_state

from quire.columns import pack_u32
from quire.v1 import monitor_pb2

pytestmark = pytest.mark.page

Push = Callable[[dict[str, Any]], None]
SECOND = 1_000_000_000


def sequence(name: str, blocks: list[int], **given: Any) -> monitor_pb2.SequenceState:
    return monitor_pb2.SequenceState(
        request_id=name, status=given.pop("status", "running"), block_ids=pack_u32(blocks), **given
    )


def legend(page: Page) -> dict[str, str]:
    entries = page.locator("#pool-legend li")
    return {
        entries.nth(at).get_attribute("data-kind") or "": entries.nth(at).locator("b").inner_text()
        for at in range(entries.count())
    }


@pytest.mark.parametrize(
    ("num_blocks", "scale"),
    [
        (100, "100 blocks of 16 tokens; one cell each"),
        (2_730, "2,730 blocks of 16 tokens; one cell each"),
        (200_000, "200,000 blocks of 16 tokens; "),
    ],
)
def test_pools_of_all_sizes(fed: Page, push: Push, num_blocks: int, scale: str) -> None:
    states = bytearray(num_blocks)
    states[:8] = bytes([1, 1, 2, 3, 4, 5, 6, 255])
    push(server_state(bytes(states)))
    expect(fed.locator("#pool-scale")).to_contain_text(scale)
    expected = {
        "free": f"{num_blocks - 8:,}",
        "cached": "2",
        "held": "1",
        "shared2": "1",
        "shared4": "2",
        "sharedMany": "2",
    }
    assert legend(fed) == expected
    fed.locator("#pool").focus()
    expect(fed.locator("#pool-block")).to_contain_text("cached")
    fed.keyboard.press("End")
    expect(fed.locator("#pool-block")).to_contain_text(f"{num_blocks - 1}")
    # All cells lie on the picture: its last one can be pointed at.
    box = fed.locator("#pool").bounding_box()
    assert box is not None
    inside = """([count, width, height]) => import("/page/pool_layout.js").then(({ layout, corner, cellAt }) => {
      const made = layout(count, width, height);
      const [x, y] = corner(made, made.numCells - 1);
      return x + made.cell <= width && y + made.cell <= height && cellAt(made, x + 1, y + 1) === made.numCells - 1;
    })"""
    assert fed.evaluate(inside, [num_blocks, box["width"], box["height"]])


def test_changes_of_the_map(fed: Page, push: Push) -> None:
    push(server_state(bytes(50)))
    push(server_state(bytes([2, 3, 1]), complete=False, changed=[7, 9, 49]))
    expect(fed.locator("#pool-legend [data-kind=free] b")).to_have_text("47")
    assert legend(fed) | {"held": "1", "shared2": "1", "cached": "1"} == legend(fed)


def test_names_of_requests_are_text(fed: Page, push: Push) -> None:
    name = "<img src=x onerror=document.title='owned'>"
    push(server_state(bytes([2]), sequences=[sequence(name, [0], tenant="<b>me</b>")]))
    expect(fed.locator("#requests button")).to_have_text(name)
    expect(fed.locator("#requests td").last).to_have_text("<b>me</b>")
    fed.locator("#requests button").click()
    expect(fed.locator("#pool-table")).to_contain_text(name)
    assert fed.locator("#requests img, #requests b, #pool-table img").count() == 0
    assert fed.title() == "Quire"


def test_rows_of_requests(fed: Page, push: Push) -> None:
    first = sequence("one", [3, 1, 2], num_tokens=40, num_prompt_tokens=30, num_cached_tokens=16, executor=1, age_s=3)
    waiting = sequence("two", [], status="waiting", num_tokens=9, num_prompt_tokens=9)
    push(server_state(bytes([0, 2, 2, 2]), sequences=[first, waiting]))
    rows = fed.locator("#requests tr")
    expect(rows.first).to_have_text("onerunning3 s30161031")
    expect(rows.last).to_have_text("twowaiting0 s9000–")
    rows.first.click()
    expect(fed.locator("#pool-table")).to_have_text("one: 3 blocks: 3, 1, 2")
    # The order changes; the rows, and which of them is chosen, stay what they are.
    push(server_state(b"", complete=False, sequences=[waiting, first]))
    expect(rows.last).to_have_class("chosen")
    push(server_state(b"", complete=False, sequences=[waiting]))
    expect(rows).to_have_count(1)
    expect(fed.locator("#pool-table")).to_have_text("The chosen request has ended.")


def test_counters_of_a_new_scheduler_begin_again(fed: Page, push: Push) -> None:
    def figures(at_s: float, tokens: int, start: int) -> dict[str, Any]:
        return server_state(
            bytes(4), time_ns=int(at_s * SECOND), num_generation_tokens=tokens, scheduler_start_ns=start
        )

    generation = fed.locator(".chart dd").first
    push(figures(100, 50_000, 1))
    push(figures(101, 50_100, 1))
    expect(generation).to_have_text("100")
    push(figures(102, 10, 2))  # not minus 50,090
    expect(generation).to_have_text("–")
    push(figures(103, 40, 2))
    expect(generation).to_have_text("30")


def test_who_may_not_see_the_server_can_still_chat(watched: Any) -> None:
    page = refused(watched, 403, "only operators may see this")
    expect(page.locator("#notice")).to_contain_text("only an operator's")
    expect(page.locator("#feed-status")).to_have_text("no view")
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".assistant .text")).to_contain_text("Paris")
    assert page.evaluate("fakeFeed.numConnections") == 1  # it does not ask again and again


def refused(watched: Any, status: int, message: str) -> Page:
    page: Page = watched.page
    page.add_init_script(path=FAKE_FEED)
    page.add_init_script(f"fakeFeed.status = {status}; fakeFeed.message = {message!r};")
    page.goto("/")
    return page


def test_a_server_that_is_away_is_waited_for(fed: Page, push: Push) -> None:
    push(server_state(bytes(4)))
    expect(fed.locator("#feed-status")).to_have_text("live")
    fed.evaluate("fakeFeed.status = 0; fakeFeed.end()")
    expect(fed.locator("#feed-status")).to_have_text("server away")
    expect(fed.locator("#notice")).to_contain_text("Trying again")
    fed.evaluate("new Promise((resolve) => setTimeout(resolve, 2000))")
    assert 1 < fed.evaluate("fakeFeed.numConnections") < 6  # with growing pauses
    fed.evaluate("fakeFeed.status = 200")
    expect(fed.locator("#notice")).to_contain_text("Trying again")
    connections = fed.evaluate("fakeFeed.numConnections")
    while fed.evaluate("fakeFeed.numConnections") == connections:
        fed.evaluate("new Promise((resolve) => setTimeout(resolve, 50))")
    with fed.expect_request("**/v1/models"):  # it may be another server
        push(server_state(bytes(4)))
    expect(fed.locator("#feed-status")).to_have_text("live")
    expect(fed.locator("#notice")).to_be_hidden()


def test_a_server_that_says_nothing(fed: Page, push: Push) -> None:
    push(server_state(bytes(4)))
    expect(fed.locator("#feed-status")).to_have_text("live")
    expect(fed.locator("#feed-status")).to_have_text("no news")
    push(server_state(bytes(4)))
    expect(fed.locator("#feed-status")).to_have_text("live")
