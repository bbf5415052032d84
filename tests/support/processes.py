"""What a process holds."""

from __future__ import annotations

import re
from pathlib import Path


def open_descriptors(pid: int | str = "self") -> set[str]:
    """The numbers of a process's open descriptors."""
    return {path.name for path in Path(f"/proc/{pid}/fd").iterdir()}


def shared_memory(pid: int | str = "self") -> set[str]:
    """The names of our anonymous shared memory that a process maps."""
    return set(re.findall(r"memfd:(quire[\w-]*)", Path(f"/proc/{pid}/maps").read_text()))
