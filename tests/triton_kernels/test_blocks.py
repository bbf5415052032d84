"""Copy on write in Triton against the reference."""

from __future__ import annotations

import pytest
import torch

from quire import kernels
from quire.kernels import reference


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((6, 37), torch.uint8),
        ((6, 2, 3), torch.int16),
        ((6, 8196), torch.uint8),
        ((6, 3, 2, 4, 16, 8), torch.float16),
        ((6, 3, 2, 4, 16, 8), torch.bfloat16),
        ((6, 20_000), torch.uint8),
    ],
)
def test_equals_reference(shape, dtype, device):
    torch.manual_seed(0)
    pool = torch.randint(0, 255, shape).to(device, dtype)
    expected = pool.clone()
    sources, destinations = torch.tensor([3, 0, 3], device=device), torch.tensor([5, 1, 4], device=device)
    kernels.copy_blocks(pool, sources, destinations)
    reference.copy_blocks(expected, sources, destinations)
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("start", [2, 8])
def test_pool_may_be_strided_between_blocks(start, device):
    whole = torch.arange(6 * 24, dtype=torch.uint8, device=device).view(6, 24)
    expected = whole.clone()
    expected[5, start : start + 8] = whole[0, start : start + 8]
    kernels.copy_blocks(whole[:, start : start + 8], torch.tensor([0], device=device), torch.tensor([5], device=device))
    assert torch.equal(whole, expected)
