"""SwiGLU's gate in Triton against torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from quire import kernels

# An exponential and a quotient that are 2 units in the last place apart, in float32; in the narrower types their
# rounding, which may fall to either side twice.
ERROR = {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}


@pytest.mark.parametrize("shape", [(1, 2), (3, 96), (5, 2 * 1023), (2, 2 * 1025), (2, 3, 14)])
def test_silu_and_mul(shape, dtype, device):
    torch.manual_seed(0)
    gate_up = (4 * torch.randn(shape)).to(device, dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    gated = kernels.silu_and_mul(gate_up)
    assert gated.dtype == dtype
    torch.testing.assert_close(gated, functional.silu(gate) * up, rtol=ERROR[dtype], atol=1e-7)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's, in the interpreter
def test_the_ends_of_the_range(device):
    gate = torch.tensor([-1e4, -89.0, -0.0, 0.0, 89.0, 1e4], device=device)
    gated = kernels.silu_and_mul(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    torch.testing.assert_close(gated, functional.silu(gate), rtol=2e-6, atol=1e-30)


def test_rows_of_a_wider_tensor(dtype, device):
    torch.manual_seed(0)
    part = torch.randn(4, 50).to(device, dtype)[:, 5:25]
    assert torch.equal(kernels.silu_and_mul(part), kernels.silu_and_mul(part.contiguous()))


def test_no_rows(dtype, device):
    assert kernels.silu_and_mul(torch.empty(0, 20, dtype=dtype, device=device)).shape == (0, 10)
