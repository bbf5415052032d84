"""Against transformers' own module, bit for bit."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from quire import kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 576), (33, 576), (5, 4, 64), (3, 7)])
def test_equals_transformers(shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    module = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    module.weight.data = weight
    x = (3 * torch.randn(shape)).to(dtype)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_add_is_add_then_norm(dtype: torch.dtype):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 9, 64).to(dtype)
    weight = torch.randn(64).to(dtype)
    kept = residual.clone()
    normed, total = kernels.fused_add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, kept + x)
    assert torch.equal(normed, kernels.rms_norm(kept + x, weight, 1e-6))
    assert torch.equal(residual, kept)


def test_a_row_does_not_know_its_batch():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 576), torch.randn(576)
    together = kernels.rms_norm(x, weight, 1e-5)
    assert all(torch.equal(kernels.rms_norm(x[i : i + 1], weight, 1e-5)[0], together[i]) for i in range(64))
