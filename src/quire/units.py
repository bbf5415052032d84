"""Numbers for people."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Four digits and a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} GiB"
