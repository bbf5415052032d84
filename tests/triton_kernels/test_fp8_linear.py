"""Weights in FP8: the quantisation is torch's bit for bit, the product is that of the quantised numbers.

Triton's interpreter multiplies FP8 numbers as float16 ones, which hold them exactly. It does not round to FP8 as a GPU
does (test_cache_store.py): there, inputs are numbers that FP8 holds, with a scale that is a power of two.
"""

from __future__ import annotations

import os

import pytest
import torch

from quire import kernels
from quire.kernels import Fp8Weight, reference
from quire.kernels.cache import quantize
from quire.kernels.fp8_weight import FP8
from quire.kernels.triton.fp8_linear import quantize_rows

ROUNDS = os.environ.get("TRITON_INTERPRET") != "1"

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="FP8 needs Hopper or later"
    ),
    # In the interpreter numpy warns of 0 / 0, which is not used.
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]


def operands(rows, outputs, inputs, dtype, device):
    generator = torch.Generator().manual_seed(rows + outputs + inputs)
    x = torch.randn(rows, inputs, generator=generator)
    if not ROUNDS:
        x = (x.sign() * x.abs().clamp(0.02, 3) * 128).to(FP8).float()
        x[:, 0] = 448
    x *= 2.0 ** (torch.arange(rows) % 9 - 9)[:, None]
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    bias = torch.randn(outputs, generator=generator)
    return x.to(device, dtype), Fp8Weight.quantize(weight.to(device)), bias.to(device, dtype)


@pytest.mark.parametrize("inputs", [1, 100, 5000])
def test_rows_are_quantised_as_the_reference_does(device, dtype, inputs):
    x = operands(5, 1, inputs, dtype, device)[0]
    x[2] = 0
    steps, scales = quantize_rows(x)
    # On the CPU, which divides: torch on a GPU multiplies by the reciprocal of a constant.
    expected, expected_scales = quantize(x.cpu(), FP8)
    assert torch.equal(scales.cpu(), expected_scales)
    assert torch.equal(steps.float().cpu(), expected.float())


def test_not_a_number_stays_one(device):
    x = torch.ones(3, 64, device=device)
    x[0, 3], x[1, 3] = torch.nan, torch.inf
    _, scales = quantize_rows(x)
    assert scales.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 40, 256), (3, 33, 570), (65, 32, 560)])
def test_the_product(device, dtype, rows, outputs, inputs):
    x, weight, bias = operands(rows, outputs, inputs, dtype, device)
    # A GPU adds the products of a block up in about 14 bits.
    least = 2e-3 if ROUNDS else 1e-5
    tolerance = {torch.float32: least, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    on_cpu = Fp8Weight(weight.data.cpu(), weight.scales.cpu())
    for added in (None, bias):
        found = kernels.linear(x, weight, added)
        assert found.dtype == dtype
        expected = reference.fp8_linear(x.cpu(), on_cpu, None if added is None else added.cpu())
        torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_bits_do_not_depend_on_the_rows_beside(device):
    x, weight, bias = operands(70, 40, 700, torch.float16, device)
    everything = kernels.linear(x, weight, bias)
    for rows in (1, 65):
        assert torch.equal(kernels.linear(x[-rows:], weight, bias), everything[-rows:]), rows
