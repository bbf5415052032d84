"""Follows every link of the finished HTML, and finds what a browser would fetch from elsewhere."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

# Attributes whose target the browser loads by itself.
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """Ids and targets of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        # (tag, target)
        self.targets: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if values.get("id"):
            self.ids.add(values["id"] or "")
        target = values.get("href" if tag == "a" else _LOADED.get(tag, ""))
        if target is not None:
            self.targets.append((tag, target))


@cache
def _page(path: Path) -> _Page:
    return _Page(path.read_text())


def broken_links(site: Path) -> list[str]:
    """What is wrong with the links of all pages, a line each; anchors and files of the site are looked up."""
    return [problem for path in sorted(site.rglob("*.html")) for problem in _problems(path, site)]


def _problems(path: Path, site: Path) -> list[str]:
    problems = []
    for tag, target in _page(path).targets:
        if target.startswith(("http:", "https:", "//")):
            problem = "is loaded from elsewhere" if tag in _LOADED else None
        elif target.startswith(("mailto:", "data:")):
            problem = None
        else:
            problem = _lost(path, target)
        if problem:
            problems.append(f"{path.relative_to(site)}: {target} {problem}")
    return problems


def _lost(path: Path, target: str) -> str | None:
    file, _, anchor = unquote(target).partition("#")
    place = (path.parent / file.partition("?")[0]).resolve() if file else path
    if not place.is_file():
        return "is not there"
    is_known = not anchor or place.suffix != ".html" or anchor in _page(place).ids
    return None if is_known else "has no such anchor"
