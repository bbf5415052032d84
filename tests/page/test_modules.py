"""Modules of the page alone, in the browser that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from support.live_page import watched_page
from support.servers import Server

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """One page for all."""
    with watched_page(browser, server.url) as watched:
        watched.page.goto("/")
        yield watched.page
        assert watched.problems == []


ALIGN = """(pushes) => import("/page/tokens.js").then(({ Aligner }) => {
  const aligner = new Aligner();
  const bytes = (text) => (Array.isArray(text) ? text : [...new TextEncoder().encode(text)]);
  const token = (text) => ({ token: text, logprob: 0, bytes: bytes(text) });
  const spans = pushes.flatMap(([kind, text, tokens]) => aligner.push(kind, text, tokens.map(token)));
  return [...spans, ...aligner.end()].map(({ kind, text, token }) => [kind, text, token !== null]);
})"""


def aligned(page: Page, *pushes: tuple[str, str, list[Any]]) -> list[Any]:
    """Spans of an answer that came in these pieces: kind, text, whether it is a token."""
    spans = page.evaluate(ALIGN, pushes)
    assert "".join(text for _, text, _ in spans) == "".join(text for _, text, _ in pushes)
    return [tuple(span) for span in spans]


def content(text: str, is_token: bool = True) -> tuple[str, str, bool]:
    return "content", text, is_token


@pytest.mark.parametrize(
    ("pushes", "expected"),
    [
        ([("content", "a b", ["a", " b"])], [content("a"), content(" b")]),
        # Held back while it may be the begin of a stop string.
        ([("content", "", ["a"]), ("content", "", [" b"]), ("content", "a b", [])], [content("a"), content(" b")]),
        ([("content", "a", ["ab"]), ("content", "b", [])], [content("ab")]),
        # The token that ends an answer has no text.
        ([("content", "a", ["a", "<|end|>"])], [content("a")]),
        ([("content", " a", ["<think>", " a"])], [content(" a")]),
        # No logprobs, or too few of them: the text is shown.
        ([("content", "abc", [])], [content("abc", False)]),
        ([("content", "a rest", ["a"])], [content("a"), content(" rest", False)]),
        # A first token with a blank that the text has not.
        ([("content", "The sea", [" The", " sea"])], [content("The"), content(" sea")]),
        # A character of several tokens.
        ([("content", "é!", [[0xC3], [0xA9], "!"])], [content("é"), content("!")]),
        (
            [("reasoning", "hm", ["<think>", "hm"]), ("content", "so", ["</think>", "so"])],
            [("reasoning", "hm", True), content("so")],
        ),
        # Another order of text than of tokens loses none of the text.
        ([("content", "xyz", ["q", "r"])], [content("xyz", False)]),
    ],
)
def test_tokens_are_laid_over_the_text(page: Page, pushes: Any, expected: Any) -> None:
    assert aligned(page, *pushes) == expected


@pytest.mark.parametrize(
    ("counts", "sum_s", "share", "expected"),
    [
        ([0, 0, 0], 0, 0.5, None),
        ([0, 10, 0], 15, 0.5, 1.5),
        ([0, 10, 0], 15, 0.95, 1.95),
        ([4, 4, 0], 8, 0.75, 1.5),
        ([0, 0, 5], 50, 0.5, 2.0),
        ([10, 0, 0], 0.01, 0.5, 0.001),  # all far below the first bound
        ([10, 0, 0], 9.0, 0.5, 0.5),
    ],
)
def test_quantiles(page: Page, counts: list[int], sum_s: float, share: float, expected: float | None) -> None:
    script = """([counts, sum, share]) => import("/page/history.js").then(({ quantile }) =>
      quantile({ bounds: [1, 2], counts, sum }, share))"""
    found = page.evaluate(script, [counts, sum_s, share])
    assert found == (None if expected is None else pytest.approx(expected))


def test_server_sent_events_in_pieces(page: Page) -> None:
    script = """(pieces) => import("/page/api.js").then(async ({ events }) => {
      const stream = new ReadableStream({
        start(controller) {
          for (const piece of pieces) controller.enqueue(new TextEncoder().encode(piece));
          controller.close();
        },
      });
      const found = [];
      for await (const data of events(stream)) found.push(data);
      return found;
    })"""
    pieces = ["data: a\n", "\ndata:b\r\n\r\n: nothing\n\n", "event: x\ndata: 1\ndata: 2\n\nda", "ta: cut off"]
    assert page.evaluate(script, pieces) == ["a", "b", "1\n2"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("percent", 0, "0 %"),
        ("percent", 0.00001, "< 0.01 %"),
        ("percent", 0.0051, "0.51 %"),
        ("percent", 0.5, "50 %"),
        ("percent", 0.917, "91.7 %"),
        ("percent", None, "–"),
        ("duration", 0.00123, "1.23 ms"),
        ("duration", 2.345, "2.35 s"),
        ("age", 125, "2 min 5 s"),
        ("rate", 12345.6, "12,346"),
        ("rate", 12.34, "12.3"),
    ],
)
def test_formats(page: Page, name: str, value: float | None, expected: str) -> None:
    script = """([name, value]) => import("/page/format.js").then((format) => format[name](value))"""
    assert page.evaluate(script, [name, value]) == expected
