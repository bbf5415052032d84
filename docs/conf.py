"""Sphinx's settings. The pages are read from a copy that tools/docs_site makes; `make docs`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "Quire"
version = release = _PROJECT["version"]
project_copyright = "The Quire authors, Apache-2.0"
language = "en"
extensions = ["myst_parser"]
exclude_patterns = ["files/**"]
nitpicky = True
smartquotes = False  # two hyphens begin a flag

# Headings are anchors under the names that repository browsers give them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"Quire {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"footer_icons": []}
html_static_path = ["_static"]
html_css_files = ["site.css"]
