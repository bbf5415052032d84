"""The Triton kernels compiled to machine code, for GPUs that this machine need not have.

Triton brings NVIDIA's assembler and disassembler. A driver that pretends to be a GPU of a chosen architecture lets the
operators' own Python code choose the types, constants and options of a launch; the launch itself is left out. What
comes out is the code that such a GPU would run: whether it compiles, what shared memory and registers it takes, and
which instructions it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from quire import kernels
from quire.kernels.triton import launch

# Compute capability → bytes of shared memory that a program may take (CUDA C++ Programming Guide, table of technical
# specifications): A100; L4, L40S and RTX 4090; H100 and H200.
SHARED_MEMORY = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}


class _PretendedGpu:
    """As much of a driver as the compiler asks for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclass(frozen=True)
class Compiled:
    """One launch's machine code.

    Attributes:
        name: of the kernel.
        sass: its disassembly.
        shared: bytes of shared memory of one program.
    """

    name: str
    sass: str
    shared: int
    num_warps: int

    def count(self, instruction: str) -> int:
        """How often an instruction, such as HGMMA, stands in the code."""
        return sum(instruction in line.replace(".", " ").split() for line in self.sass.splitlines())

    @property
    def spills(self) -> int:
        """Accesses to local memory, where registers go that there is no room for."""
        return self.count("STL")


class Recorder(list[Compiled]):
    """What was launched since the test began, for a GPU of `capability`."""

    capability: int

    def named(self, name: str) -> list[Compiled]:
        """The launches of one kernel."""
        return [compiled for compiled in self if compiled.name == name]


@pytest.fixture(params=sorted(SHARED_MEMORY), ids=lambda capability: f"sm_{capability}")
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Launches are compiled and recorded, not run; each must fit the GPU's shared memory."""
    recorder = Recorder()
    recorder.capability = request.param
    driver.set_active(_PretendedGpu(request.param))

    def record(kernel: Any, grid: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        code = kernel.run(*args, grid=grid, warmup=True, **keywords)
        name = kernel.fn.__name__
        assert code.metadata.shared <= SHARED_MEMORY[request.param], f"{name} takes too much shared memory"
        recorder.append(Compiled(name, code.asm["sass"], code.metadata.shared, code.metadata.num_warps))

    monkeypatch.setattr(launch, "_run", record)
    kernels.set_implementation("triton")
    yield recorder
    kernels.set_implementation(None)
