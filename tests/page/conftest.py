"""One browser and one server for all tests of the page; each test has a page of its own.

`make test-page` runs them apart from all others: while playwright runs, tests that are coroutines cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.live_page import FAKE_FEED, TIMEOUT_MS, Watched, launch, watched_page
from support.servers import Server, running_server

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        started = launch(playwright)
        yield started
        started.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    """A page of the shared server. At the end nothing may have gone wrong, nor elsewhere."""
    with watched_page(browser, server.url) as watched:
        yield watched
        assert watched.problems == []
        assert watched.hosts <= {f"127.0.0.1:{server.port}"}


@pytest.fixture
def page(watched: Watched) -> Page:
    """The page, loaded."""
    watched.page.goto("/")
    return watched.page


@pytest.fixture
def fed(watched: Watched) -> Page:
    """The page, loaded, with the states that the test gives it (`push`)."""
    watched.page.add_init_script(path=FAKE_FEED)
    watched.page.goto("/")
    return watched.page


@pytest.fixture
def push(fed: Page) -> Callable[[dict[str, Any]], None]:
    """Gives a state to the page of `fed`."""

    def push_state(state: dict[str, Any]) -> None:
        fed.evaluate("state => fakeFeed.push(state)", state)

    return push_state
