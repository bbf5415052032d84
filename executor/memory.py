"""How much memory a KV pool may take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil
import torch

_CGROUP: Final = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Free memory of the device; on the host also within the control group's limit, as in a container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _inactive_file_bytes(cgroup / "memory.stat")
    except (OSError, ValueError):  # no such file, or "max"
        return available
    return max(0, min(available, limit - used + reclaimable))


def total_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """All memory of the device; on the host within the control group's limit."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        return int(total)
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int((cgroup / "memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def default_pool_share(device: torch.device) -> float:
    """Share of what is available that a pool takes where no size is given. A host has other things to hold."""
    return 0.9 if device.type == "cuda" else 0.4


def _inactive_file_bytes(stat: Path) -> int:
    """Page cache that the kernel gives up before it fails an allocation, such as a checkpoint's that was read."""
    values = dict(line.split() for line in stat.read_text().splitlines())
    return int(values.get("inactive_file", 0))
