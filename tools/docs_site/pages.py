"""The pages of the site, their order, and where the text comes from that the code writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from docs_site import errors, examples, grpc, metrics, python_api, rest
from docs_site.links import SiteMap, for_site

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "docs-source"
OUT = ROOT / "build" / "docs"

# By heading; a page is named as its file, from the root.
NAVIGATION: dict[str, tuple[str, ...]] = {
    "Use it": ("docs/quick_start.md", "docs/serving.md", "docs/examples.md", "docs/migration.md"),
    "Reference": ("docs/flags.md", "docs/rest_api.md", "docs/grpc_api.md", "docs/python_api.md", "docs/metrics.md"),
    "Operate it": (
        "docs/deployment.md",
        "docs/operations.md",
        "docs/observability.md",
        "docs/reliability.md",
        "docs/security.md",
        "docs/gpu.md",
        "docs/troubleshooting.md",
    ),
    "How it works": ("docs/architecture.md", "docs/recovery_model.md", "docs/benchmarks.md", "docs/bench_compare.md"),
    "The project": ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
}
# Names that would otherwise differ only in case from another page's.
_RENAMED = {"SECURITY.md": "reporting.md"}
_INDEX = "docs/index.md"
_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def generators() -> dict[str, Callable[[], str]]:
    """What writes the text that stands for `<!-- generated: name -->`, by name."""
    import docs_reference  # tools/docs_reference.py

    return {
        "flags": lambda: _below_title("\n\n".join(docs_reference.render_flags().values())),
        "vllm_flags": docs_reference.render_vllm_flags,
        "rest_paths": rest.render_paths,
        "rest_schemas": rest.render_schemas,
        "grpc": grpc.render_services,
        "python_api": python_api.render,
        "vllm_metrics": metrics.render,
        "errors": errors.render,
        "examples": examples.render,
    }


def site_map() -> SiteMap:
    """Which file is which page."""
    sources = [_INDEX, *(page for pages in NAVIGATION.values() for page in pages)]
    names = {ROOT / page: _RENAMED.get(page, Path(page).name.lower()) for page in sources}
    # The repository's first page is the site's.
    return SiteMap(ROOT, SOURCE, names, {ROOT / "README.md": names[ROOT / _INDEX]})


def stage() -> None:
    """Copies the pages to where Sphinx reads them. Raises ValueError for a page or marker that nobody knows."""
    pages = site_map()
    if forgotten := set(DOCS.glob("*.md")) - pages.names.keys():
        raise ValueError(f"not in NAVIGATION: {', '.join(sorted(path.name for path in forgotten))}")
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    writers = generators()
    for path, name in pages.names.items():
        text = for_site(path.read_text(), path, pages)
        text = _MARKER.sub(lambda marker: _generate(writers, marker[1]), text)
        if path == ROOT / _INDEX:
            text += _toctrees()
        (SOURCE / name).write_text(text)


def _generate(writers: dict[str, Callable[[], str]], name: str) -> str:
    if name not in writers:
        raise ValueError(f"nothing generates {name}; known: {', '.join(writers)}")
    return writers[name]()


def _below_title(text: str) -> str:
    """The same with headings such that the first is of level 2, below a page's own."""
    first = re.search(r"^#+", text, flags=re.MULTILINE)
    more = "#" * (2 - len(first[0])) if first else ""
    return re.sub(r"^(?=#)", more, text, flags=re.MULTILINE)


def _toctrees() -> str:
    names = site_map().names
    return "".join(
        "\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n".format(
            caption, "\n".join(names[ROOT / page].removesuffix(".md") for page in pages)
        )
        for caption, pages in NAVIGATION.items()
    )
