"""Servers with keys, and servers that lose their scheduler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import yaml
from playwright.sync_api import Browser, expect
from support.chaos.server import chaos_server
from support.live_page import Watched, watched_page
from support.servers import Server, running_server

pytestmark = pytest.mark.page

KEYS = {"operator": "the operator's own key", "user": "the key of a user"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key of an operator and one of a user."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entries = [
        {"sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": name, "operator": name == "operator"}
        for name, key in KEYS.items()
    ]
    path.write_text(yaml.safe_dump(entries))
    with running_server(api_keys=path) as server:
        yield server


def give_key(watched: Watched, key: str) -> None:
    watched.page.locator("#key-button").click()
    watched.page.get_by_label("Key", exact=True).fill(key)
    watched.page.get_by_role("button", name="Use").click()


def test_keys(browser: Browser, guarded: Server) -> None:
    with watched_page(browser, guarded.url) as watched:
        page = watched.page
        page.goto("/")
        status, notice, error = page.locator("#feed-status"), page.locator("#notice"), page.locator("#chat-error")
        expect(status).to_have_text("key needed")
        expect(notice).to_contain_text("asks for an API key")
        expect(error).to_contain_text("no API key was sent")

        give_key(watched, "a wrong key")
        expect(error).to_contain_text("not one of this server's")

        give_key(watched, KEYS["user"])
        expect(status).to_have_text("no view")
        expect(notice).to_contain_text("only an operator's")
        expect(error).to_be_hidden()
        page.get_by_label("Message").fill("What is the capital of France?")
        page.get_by_label("Message").press("Enter")
        expect(page.locator(".assistant .text")).to_contain_text("Paris")

        give_key(watched, KEYS["operator"])
        expect(status).to_have_text("live")
        expect(notice).to_be_hidden()
        assert KEYS["operator"] not in page.content()
        # For this tab, over a reload.
        assert page.evaluate("localStorage.length") == 0
        page.reload()
        expect(status).to_have_text("live")

        page.locator("#key-button").click()
        page.get_by_role("button", name="Forget").click()
        expect(status).to_have_text("key needed")
        assert page.evaluate("sessionStorage.length") == 0
        assert watched.problems == []
        assert watched.hosts == {f"127.0.0.1:{guarded.port}"}


def test_the_page_goes_on_with_a_new_scheduler(browser: Browser) -> None:
    with chaos_server() as server, watched_page(browser, server.url) as watched:
        page = watched.page
        page.goto("/")
        expect(page.locator("#feed-status")).to_have_text("live")
        old = server.kill("scheduler")
        server.wait_replaced("scheduler", old)
        server.wait_serving()
        # States come again: the answer's blocks are seen in the cache.
        page.get_by_label("Message").fill("What is the capital of France?")
        page.get_by_label("Message").press("Enter")
        expect(page.locator(".stats")).to_contain_text("complete")
        expect(page.locator("#feed-status")).to_have_text("live")
        expect(page.locator("#pool-legend [data-kind=cached] b")).not_to_have_text("0")
        expect(page.locator("#notice")).to_be_hidden()
        assert watched.problems == []
