"""The device: what it is, how fast it copies, how fast it multiplies matrices."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "triton", "transformers")


@dataclass(frozen=True)
class Limits:
    """Measured here: bytes per second of a copy within the device (read and written), operations per second in bf16."""

    bandwidth: float
    matrix_rate: float


@dataclass(frozen=True)
class Machine:
    """What the figures are of."""

    device: str
    versions: dict[str, str]

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        versions = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
        for name in _PACKAGES:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = "none"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return cls(name, versions)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_limits(device: torch.device, copy_bytes: int, matrix_size: int, rounds: int) -> Limits:
    """Medians of rounds. The copy is of more than any cache holds."""
    copied = 2 * copy_bytes / _copy_seconds(device, copy_bytes, rounds)
    return Limits(copied, 2 * matrix_size**3 / _matrix_seconds(device, matrix_size, rounds))


def _copy_seconds(device: torch.device, copy_bytes: int, rounds: int) -> float:
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median_seconds(lambda: target.copy_(source), device, rounds)


def _matrix_seconds(device: torch.device, size: int, rounds: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    return _median_seconds(lambda: torch.mm(a, b, out=product), device, rounds)


def _median_seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    for _ in range(2):
        work()
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
