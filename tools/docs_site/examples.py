"""The programs of examples/, whole."""

from __future__ import annotations

from pathlib import Path

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_LANGUAGES = {".py": "python", ".sh": "sh", ".mjs": "js"}


def render() -> str:
    """A section per program."""
    programs = sorted(path for path in _EXAMPLES.iterdir() if path.suffix in _LANGUAGES)
    return "\n".join(f"## {path.name}\n\n```{_LANGUAGES[path.suffix]}\n{path.read_text()}```\n" for path in programs)
