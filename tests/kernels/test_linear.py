import pytest
import torch

from quire import kernels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    module = torch.nn.Linear(48, 80, bias=bias).to(dtype)
    x = torch.randn(5, 48).to(dtype)
    with torch.no_grad():
        assert torch.equal(kernels.linear(x, module.weight, module.bias), module(x))
