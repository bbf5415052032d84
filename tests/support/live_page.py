"""The live page in a real browser: Debian's chromium without a window, driven by playwright."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, Playwright

from quire.gateway.monitor_routes import to_plain
from quire.v1 import monitor_pb2

CHROMIUM = "/usr/bin/chromium"
# Bounds a test that fails; nothing waits that long. Milliseconds.
TIMEOUT_MS = 30_000
FAKE_FEED = Path(__file__).parents[1] / "page" / "fake_feed.js"

_QUESTION = "Tell me about the history of the sea, and of those who lived by it, as long as you can."


def launch(playwright: Playwright, **environment: str) -> Browser:
    """A browser. Chromium has no sandbox of its own for root, whom tests in containers often run as."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=environment or None)


@dataclass
class Watched:
    """A page, and what must not happen on it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    # Of every request, but for `data:` and the like, which leave no machine.
    hosts: set[str] = field(default_factory=set)


@contextlib.contextmanager
def watched_page(browser: Browser, url: str, **options: Any) -> Iterator[Watched]:
    """An empty page in a context of its own; `options` are the context's. Nothing has been loaded yet."""
    context: BrowserContext = browser.new_context(base_url=url, **options)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    watched = Watched(page)

    def note_console(message: Any) -> None:
        # The browser itself says this of each answer that is not 2xx; the page shows it to its user.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            watched.problems.append(f"console: {message.text}")

    def note_request(request: Any) -> None:
        if (host := urlsplit(request.url).netloc) and request.url.startswith(("http", "ws")):
            watched.hosts.add(host)

    page.on("console", note_console)
    page.on("pageerror", lambda error: watched.problems.append(f"exception: {error}"))
    page.on("request", note_request)
    try:
        yield watched
    finally:
        context.close()


def server_state(states: bytes, *, complete: bool = True, changed: Sequence[int] = (), **given: Any) -> dict[str, Any]:
    """A ServerState as /monitor/state sends it, with this map of the KV pool."""
    held = sum(state >= 2 for state in states)
    cached = sum(state == 1 for state in states)
    message = monitor_pb2.ServerState(
        loads=monitor_pb2.Loads(
            time_ns=given.pop("time_ns", 1_800_000_000_000_000_000),
            model="fake",
            num_requests_running=len(given.get("sequences", ())),
            num_executors=1,
            num_live_executors=1,
            block_size=16,
            num_blocks=len(states),
            cached_blocks=cached,
            held_blocks=held,
            free_blocks=len(states) - held - cached,
            kv_cache_usage=held / len(states) if states else 0,
        ),
        blocks=monitor_pb2.BlockMap(
            is_complete=complete,
            block_ids=b"".join(block.to_bytes(4, "little") for block in changed),
            states=states,
        ),
        **{"scheduler_start_ns": 1, **given},
    )
    return to_plain(message)


@contextlib.contextmanager
def steady_load(url: str, users: int, max_tokens: int = 1500, api_key: str = "") -> Iterator[None]:
    """So many users who ask the same long question again and again until the end of the block."""
    ending = threading.Event()

    def ask(number: int) -> None:
        body = {
            "model": "quire-tiny",
            "messages": [{"role": "user", "content": f"{_QUESTION} {number % 3}"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            while not ending.is_set():
                with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    for _ in answer.iter_raw():
                        if ending.is_set():
                            break

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(users)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
