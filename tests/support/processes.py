"""What a process holds."""

from __future__ import annotations

from pathlib import Path


def open_descriptors(pid: int | str = "self") -> set[str]:
    """The numbers of a process's open descriptors."""
    return {path.name for path in Path(f"/proc/{pid}/fd").iterdir()}
