"""The softmax's exponential: its documented bound over its range, and its exact values."""

import torch
from torch import Tensor

from quire.kernels.native_library import library


def native_exp(x: Tensor) -> Tensor:
    result = torch.empty_like(x)
    library().quire_exp(x.data_ptr(), result.data_ptr(), x.numel())
    return result


def test_error_bound(isa: str):
    x = torch.cat(
        [torch.linspace(-87.33, 0, 1_000_001), -torch.logspace(-30, 1.9, 200_000), torch.linspace(0, 88, 200_001)]
    )
    exact = x.double().exp()
    # Spacing of float32 around each exact value: 24 bits of significand.
    ulp = torch.exp2((torch.frexp(exact).exponent - 24).double())
    assert float(((native_exp(x).double() - exact) / ulp).abs().max()) < 1.5


def test_exact_values(isa: str):
    x = torch.tensor([0.0, -0.0, float("-inf"), -87.34, -1000.0, float("nan")])
    result = native_exp(x)
    assert result[:5].tolist() == [1, 1, 0, 0, 0]
    assert result[5].isnan()


def test_a_lane_does_not_know_its_neighbours(isa: str):
    x = torch.linspace(-20, 0, 37)
    together = native_exp(x)
    assert all(native_exp(x[i : i + 1]).item() == together[i].item() for i in range(37))
