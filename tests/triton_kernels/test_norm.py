"""RMSNorm in Triton against torch's, and the sum with the residual stream."""

from __future__ import annotations

import pytest
import torch

from quire import kernels

EPS = 1e-5
# The sum has another order, and what is on the edge between two numbers of the narrow type may fall to either side.
ERROR = {torch.float32: 1e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}

SHAPES = [(1, 64), (3, 576), (5, 7), (2, 3, 80), (4, 1), (2, 5120)]


def in_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    kernels.set_implementation("torch")
    expected = kernels.rms_norm(x, weight, EPS)
    kernels.set_implementation("triton")
    return expected


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape, dtype, device):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).to(device, dtype)
    weight = torch.randn(shape[-1]).to(device, dtype)
    normed = kernels.rms_norm(x, weight, EPS)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed, in_torch(x, weight), rtol=ERROR[dtype], atol=ERROR[dtype])


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_add_is_add_then_norm(shape, dtype, device):
    torch.manual_seed(0)
    x, residual = (3 * torch.randn(2, *shape)).to(device, dtype)
    weight = torch.randn(shape[-1]).to(device, dtype)
    kept = x.clone(), residual.clone()
    normed, total = kernels.fused_add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, kernels.rms_norm(total, weight, EPS))
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


def test_a_row_does_not_know_its_batch(dtype, device):
    torch.manual_seed(0)
    x, weight = torch.randn(9, 576).to(device, dtype), torch.randn(576).to(device, dtype)
    together = kernels.rms_norm(x, weight, EPS)
    assert all(torch.equal(kernels.rms_norm(x[i : i + 1], weight, EPS)[0], together[i]) for i in range(9))


def test_rows_of_a_wider_tensor(dtype, device):
    torch.manual_seed(0)
    wide, weight = torch.randn(4, 3, 50).to(device, dtype), torch.randn(20).to(device, dtype)
    part = wide[:, 1:, 5:25]
    assert torch.equal(kernels.rms_norm(part, weight, EPS), kernels.rms_norm(part.contiguous(), weight, EPS))


def test_a_wider_weight_gives_a_wider_result(device):
    x, weight = torch.randn(3, 20).to(device, torch.float16), torch.randn(20, device=device)
    normed = kernels.rms_norm(x, weight, EPS)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed, in_torch(x, weight), rtol=2**-9, atol=2**-9)


def test_no_rows(dtype, device):
    x, weight = torch.empty(0, 20, dtype=dtype, device=device), torch.ones(20, dtype=dtype, device=device)
    assert kernels.rms_norm(x, weight, EPS).shape == (0, 20)
    assert [tensor.shape for tensor in kernels.fused_add_rms_norm(x, x, weight, EPS)] == [(0, 20), (0, 20)]
