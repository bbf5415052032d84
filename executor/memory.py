"""How much memory a KV pool may take, where it will live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil
import torch

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What an executor tells the scheduler of its memory, in bytes.

    Attributes:
        available_bytes: what the KV pool may take.
        total_bytes: all memory of the device.
        overhead_bytes: what --gpu-memory-utilization counts besides weights and pool: activations, graphs, buffers,
            what the driver and libraries took. 0 on a host, whose memory is not the executor's alone.
    """

    available_bytes: int
    total_bytes: int
    overhead_bytes: int = 0


class DeviceMemory(Protocol):
    """Memory of a device of its own, as torch and the driver see it."""

    def free_bytes(self) -> int:
        """What nobody has taken."""
        ...

    def total_bytes(self) -> int:
        """All of it."""
        ...

    def start_measuring(self) -> int:
        """Gives back what torch keeps and does not use; returns what it does use, where `peak_bytes` starts."""
        ...

    def peak_bytes(self) -> int:
        """The most that torch has held since, what it keeps for reuse included."""
        ...


class CudaMemory:
    """Of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """See DeviceMemory."""
        return int(torch.cuda.mem_get_info(self._device)[0])

    def total_bytes(self) -> int:
        """See DeviceMemory."""
        return int(torch.cuda.mem_get_info(self._device)[1])

    def start_measuring(self) -> int:
        """See DeviceMemory."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_reserved(self._device)

    def peak_bytes(self) -> int:
        """See DeviceMemory."""
        return torch.cuda.max_memory_reserved(self._device)


def host_memory(cgroup: Path = _CGROUP) -> MemoryReport:
    """The host's memory, also within the control group's limit, as in a container."""
    memory = psutil.virtual_memory()
    available, total = int(memory.available), int(memory.total)
    try:
        limit = int((cgroup / "memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return MemoryReport(available, total)
    total = min(total, limit)
    try:
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _inactive_file_bytes(cgroup / "memory.stat")
    except (OSError, ValueError):
        return MemoryReport(available, total)
    return MemoryReport(max(0, min(available, limit - used + reclaimable)), total)


def _inactive_file_bytes(stat: Path) -> int:
    """Page cache that the kernel gives up before it fails an allocation, such as a checkpoint's that was read."""
    values = dict(line.split() for line in stat.read_text().splitlines())
    return int(values.get("inactive_file", 0))
