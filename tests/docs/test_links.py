"""Links of all Markdown in the repository hold where it stands, so they work in a repository browser too.

`make docs` follows the links of the site.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docs_site.links import is_external, targets

ROOT = Path(__file__).resolve().parents[2]
# Hosts that pages may link to; there is no network to ask whether they answer. `localhost` is the reader's own.
KNOWN_HOSTS = frozenset(
    {
        "127.0.0.1",
        "arxiv.org",
        "docs.astral.sh",
        "github.com",
        "grafana.com",
        "huggingface.co",
        "keepachangelog.com",
        "localhost",
        "opentelemetry.io",
        "prometheus.io",
        "semver.org",
        "www.jaegertracing.io",
        "www.rfc-editor.org",
    }
)


def _pages() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


@cache
def _anchors(page: Path) -> frozenset[str]:
    """The anchors that a repository browser gives to headings."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        # A second heading of the same words gets a number.
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return frozenset(found)


def _problem(page: Path, target: str) -> str | None:
    if is_external(target):
        parts = urlsplit(target)
        if parts.scheme == "mailto":
            return None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return "is no web address"
        return None if parts.hostname in KNOWN_HOSTS else f"leads to {parts.hostname}, which is not in KNOWN_HOSTS"
    file, _, anchor = target.partition("#")
    place = (page.parent / file).resolve() if file else page
    if not place.is_relative_to(ROOT):
        return "leads out of the repository"
    if not place.exists():
        return "is not there"
    has_anchor = not anchor or (place.suffix == ".md" and anchor in _anchors(place))
    return None if has_anchor else "has no such heading"


def test_there_are_pages_to_check():
    names = {page.relative_to(ROOT).as_posix() for page in _pages()}
    assert {"README.md", "docs/index.md", "docs/architecture.md", "CONTRIBUTING.md"} <= names


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_hold_in_the_repository(page):
    found = ((target, _problem(page, target)) for target in targets(page.read_text()))
    assert not [f"{target} {problem}" for target, problem in found if problem]


def test_a_broken_link_is_found(tmp_path):
    page = ROOT / "docs" / "architecture.md"
    assert _problem(page, "no-such-page.md") == "is not there"
    assert _problem(page, "security.md#no-such-heading") == "has no such heading"
    assert _problem(page, "../../elsewhere.md") == "leads out of the repository"
    assert _problem(page, "ftp://example.org/x") == "is no web address"
    assert _problem(page, "https://nobody-knows.example/") is not None
    assert list(targets("[a](b.md) `[c](d.md)`\n```sh\n[e](f.md)\n```\n![g](h.png)\n")) == ["b.md", "h.png"]


@cache
def _files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [f"/{line}" for line in listed.splitlines()]


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`([\w./-]+\.(?:py|proto|cpp|hpp|h|inl|sh))`", page.read_text())
    # Pages shorten paths from the left: `block_pool.py`, `gateway/rest.py`.
    assert not [name for name in named if not any(file.endswith(f"/{name}") for file in _files())]
