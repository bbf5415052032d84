"""Random steps, and a process left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from support import attention
from support.attention import Case

from quire import kernels


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """Makes a random step; slots that no sequence holds are nan."""
    return attention.make_case


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    # Torch's threads spin between operators this small, and slow each other down on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _restored_settings() -> Iterator[None]:
    isa, threads = kernels.current_isa(), kernels.get_num_threads()
    yield
    kernels.set_isa(isa)
    kernels.set_num_threads(threads)
    kernels.set_implementation(None)


@pytest.fixture(params=kernels.ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set, forced in turn."""
    name: str = request.param
    if name not in kernels.available_isas():
        pytest.skip(f"this machine has no {name}")
    kernels.set_isa(name)
    return name


@pytest.fixture(params=["torch", "avx512", "avx2", "portable"])
def implementation(request: pytest.FixtureRequest) -> str:
    """The reference, and the native implementation on every instruction set."""
    name: str = request.param
    if name == "torch":
        kernels.set_implementation("torch")
    elif name in kernels.available_isas():
        kernels.set_isa(name)
    else:
        pytest.skip(f"this machine has no {name}")
    return name
