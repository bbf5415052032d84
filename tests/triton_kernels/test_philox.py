"""The same random numbers as on the CPU, to the last of their 53 bits."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from quire.kernels.philox import uniform
from quire.kernels.triton.launch import launch
from quire.kernels.triton.philox import random_bits


@triton.jit
def _draw(seeds, positions, indices, numbers, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = random_bits(
        tl.load(seeds + 2 * at), tl.load(seeds + 2 * at + 1), tl.load(positions + at), tl.load(indices + at)
    )
    tl.store(numbers + at, (bits >> 11).to(tl.int64))


def test_numbers_equal_those_of_the_cpu(device):
    generator = np.random.default_rng(0)
    seeds = generator.integers(0, 2**64, 8192, dtype=np.uint64)
    seeds[:4] = 0, 1, 2**32, 2**64 - 1
    positions = generator.integers(0, 2**31, 8192, dtype=np.int32)
    positions[:2000] = np.arange(2000)
    indices = generator.integers(0, 2**32, 8192, dtype=np.uint32)
    columns = [torch.from_numpy(column.view(np.int32)).to(device) for column in (seeds, positions, indices)]
    numbers = torch.empty(8192, dtype=torch.int64, device=device)
    launch(_draw, (4,), *columns, numbers, num_warps=4, BLOCK=2048)
    assert np.array_equal(numbers.cpu().numpy() * 2.0**-53, uniform(seeds, positions, indices))
