"""Links of Markdown, as they stand in the repository and as the site needs them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Where the site keeps the repository's files that pages link to.
FILES = "files"

# Code of both kinds, so that it is passed over; or the target of a link or image.
_CODE_OR_TARGET = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*~*$|(?P<tick>`+).+?(?P=tick)|"
                             r"(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.MULTILINE | re.DOTALL)  # fmt: skip

# A link, and what it leads to; not an image.
_LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()#:\s]+)\)")


@dataclass(frozen=True)
class SiteMap:
    """Which file of the repository is which page of the site."""

    root: Path
    # The folder of pages that Sphinx reads.
    source: Path
    # File name of the page, by path of its file.
    names: Mapping[Path, str]
    # Files that are no pages, and the page to show instead.
    instead: Mapping[Path, str] = field(default_factory=dict)


def targets(text: str) -> Iterator[str]:
    """The targets of all links and images, in their order."""
    for match in _CODE_OR_TARGET.finditer(text):
        if match["target"]:
            yield match["target"]


def is_external(target: str) -> bool:
    """Whether it names a scheme."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def for_site(text: str, path: Path, pages: SiteMap) -> str:
    """The text of the page at `path`, with its links to files of the repository made links of the site.

    Other files than pages are copied into the site. A folder, which a site cannot show, is text alone. Raises
    ValueError for a link to what is not there.
    """

    def replace(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or is_external(target) or target.startswith("#"):
            return match[0]
        file, sharp, anchor = target.partition("#")
        return _page_or_copy(path.parent / file, path, pages) + sharp + anchor

    def without_folder(match: re.Match[str]) -> str:
        return match[1] if (path.parent / match[2]).is_dir() else match[0]

    return _CODE_OR_TARGET.sub(replace, _LINK.sub(without_folder, text))


def _page_or_copy(file: Path, page: Path, pages: SiteMap) -> str:
    file = Path(os.path.normpath(file))
    if (name := pages.names.get(file) or pages.instead.get(file)) is not None:
        return name
    if not file.is_file():
        raise ValueError(f"{page.relative_to(pages.root)}: a link to {file}, which is not there")
    copy = Path(FILES) / file.relative_to(pages.root)
    if copy.suffix == ".md":  # Sphinx would take it for a page
        copy = copy.with_suffix(".md.txt")
    (pages.source / copy).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, pages.source / copy)
    return str(copy)
