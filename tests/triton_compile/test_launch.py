"""What the other tests here rely on: a launch is compiled for the GPU that is asked for, and its code can be read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.kernels.triton.launch import launch


@triton.jit
def _product(a, b, c, SIZE: tl.constexpr):  # noqa: N803
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    left, right = tl.load(a + rows * SIZE + columns), tl.load(b + rows * SIZE + columns)
    tl.store(c + rows * SIZE + columns, tl.dot(left, right))


def test_the_code_is_that_of_the_gpu(compiled):
    a = torch.zeros(64, 64, dtype=torch.bfloat16)
    launch(_product, (1,), a, a, torch.zeros(64, 64), num_warps=4, SIZE=64)
    (product,) = compiled.named("_product")
    # Hopper multiplies with warpgroups of 128 threads, its predecessors with single warps.
    assert product.count("HGMMA") > 0 if compiled.capability == 90 else product.count("HMMA") > 0
    assert product.spills == 0
