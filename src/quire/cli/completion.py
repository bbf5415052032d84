"""What the shell is offered after Tab, where typer knows no better."""

from __future__ import annotations

import os
from pathlib import Path


def complete_paths(incomplete: str) -> list[str]:
    """Files and folders that begin so; a folder that is the only one is shown with what lies in it.

    Typer leaves files to the shell, and to zsh and fish it leaves them in a way that offers none.
    """
    found = _entries(incomplete)
    if len(found) == 1 and found[0].endswith("/"):
        return _entries(found[0]) or found
    return found


def _entries(start: str) -> list[str]:
    head, _, prefix = start.rpartition("/")
    shown = start[: len(start) - len(prefix)]
    folder = Path(head or ("/" if start.startswith("/") else ".")).expanduser()
    try:
        names = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    matching = (
        entry for entry in names if entry.name.startswith(prefix) and (prefix or not entry.name.startswith("."))
    )
    return [f"{shown}{entry.name}{'/' if entry.is_dir() else ''}" for entry in matching]
