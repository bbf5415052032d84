"""The Triton kernels against the reference: on a GPU, or on the CPU in Triton's interpreter.

make test-triton    TRITON_INTERPRET=1: no GPU is needed
make test-gpu       on a GPU, and in bfloat16 too
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from quire import kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The interpreter's tl.dot gives garbage for operands in bfloat16 (Triton 3.9).
FLOATS = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


HAS_DEVICE = INTERPRETED or torch.cuda.is_available()


class _SkippedModule(pytest.Module):
    """A file whose tests have nothing to run on; it is not even imported, since Triton may be missing too."""

    def collect(self) -> NoReturn:
        pytest.skip("there is no CUDA device", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if HAS_DEVICE else _SkippedModule.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a test lie."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each type that can be computed in here."""
    return request.param


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    """Operators are computed by Triton, on a CPU too."""
    kernels.set_implementation("triton")
    yield
    kernels.set_implementation(None)
