"""A launch reaches the kernel with its arguments and constants."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.kernels.triton.launch import launch


@triton.jit
def _add(x, y, n, BLOCK: tl.constexpr):  # noqa: N803
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(y + offsets, tl.load(x + offsets, mask=inside) + 1, mask=inside)


def test_launch(device, dtype):
    x = torch.arange(100, dtype=dtype, device=device)
    y = torch.zeros_like(x)
    launch(_add, (4,), x, y, 100, num_warps=1, BLOCK=32)
    assert torch.equal(y, x + 1)
