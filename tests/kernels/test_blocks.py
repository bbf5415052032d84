"""Copy on write, native and torch."""

from typing import Any

import pytest
import torch

from quire import kernels
from quire.kernels import reference


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((20, 37), torch.uint8),
        ((20, 3, 2, 4, 16, 8), torch.bfloat16),
        ((6, 700_000), torch.uint8),  # several pieces each, shared among threads
    ],
)
def test_equals_reference(implementation: Any, shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    kernels.set_implementation(implementation)
    pool = torch.randint(0, 255, shape).to(dtype)
    expected = pool.clone()
    sources, destinations = torch.tensor([3, 0, 3]), torch.tensor([5, 1, 4])
    kernels.copy_blocks(pool, sources, destinations)
    reference.copy_blocks(expected, sources, destinations)
    assert torch.equal(pool, expected)


def test_pool_may_be_strided_between_blocks():
    whole = torch.arange(60, dtype=torch.uint8).view(6, 10)
    kernels.copy_blocks(whole[:, 2:7], torch.tensor([0]), torch.tensor([5]))
    assert whole[5].tolist() == [50, 51, 2, 3, 4, 5, 6, 57, 58, 59]


def test_nothing_to_copy():
    none = torch.zeros(0, dtype=torch.int64)
    kernels.copy_blocks(torch.zeros(2, 2), none, none)


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize(
    ("name", "sources", "destinations"),
    [
        ("sources", [6], [1]),
        ("sources", [-1], [1]),
        ("destinations", [0], [6]),
        ("destinations", [0, 1], [2, 2]),
        ("destinations", [0, 1], [1, 2]),
        ("destinations", [0, 1], [2]),
    ],
)
def test_wrong_ids_are_named(implementation: Any, name: str, sources: list[int], destinations: list[int]):
    kernels.set_implementation(implementation)
    pool = torch.zeros(6, 4)
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.copy_blocks(pool, torch.tensor(sources), torch.tensor(destinations))


def test_wrong_tensor_is_named():
    ids = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^pool "):
        kernels.copy_blocks(torch.zeros(4, 6)[:, ::2], ids, ids + 1)
    with pytest.raises(ValueError, match=r"^sources "):
        kernels.copy_blocks(torch.zeros(4, 6), ids.int(), ids + 1)
