"""How many processors an executor may keep busy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")


def usable_processors(cgroup: Path = _CGROUP) -> int:
    """The processors that this process may run on, and no more than its control group's share, as in a container.

    A share that is no whole number is rounded down: threads beyond it would all be stopped for the rest of a period.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, (cgroup / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return allowed
    return max(1, min(allowed, quota // period))
