"""The product with a weight matrix: right to within its type's rounding, and the same bits whatever stands beside."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from quire import kernels
from quire.kernels.triton import linear as triton_linear
from quire.kernels.triton.linear_plan import Tiles, sections

SPLIT = Tiles(64, 64, 1, True, num_warps=4, num_stages=2)
WALK = Tiles(64, 64, 2, False, num_warps=4, num_stages=2)

# Relative to a result's own size, about 1: one rounding to the type, and float32 sums of a few hundred products.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def operands(rows, outputs, inputs, dtype, device):
    generator = torch.Generator().manual_seed(rows + outputs + inputs)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    bias = torch.randn(outputs, generator=generator)
    return tuple(tensor.to(device, dtype) for tensor in (x, weight, bias))


def use(monkeypatch, tiles):
    monkeypatch.setattr(triton_linear, "tiles_for", lambda *_: tiles)


@pytest.mark.parametrize("tiles", [SPLIT, WALK], ids=["split", "walk"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 64, 320), (3, 70, 300), (65, 33, 520)])
def test_the_product(monkeypatch, device, dtype, rows, outputs, inputs, tiles):
    use(monkeypatch, tiles)
    x, weight, bias = operands(rows, outputs, inputs, dtype, device)
    assert sections(outputs, inputs, dtype.itemsize).count > 1
    for added in (None, bias):
        expected = x.double() @ weight.double().T + (0 if added is None else added.double())
        found = kernels.linear(x, weight, added)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_bits_do_not_depend_on_the_rows_beside(device, dtype):
    x, weight, bias = operands(200, 40, 300, dtype, device)
    everything = kernels.linear(x, weight, bias)
    for rows in (1, 3, 64, 65):
        assert torch.equal(kernels.linear(x[-rows:], weight, bias), everything[-rows:]), rows


@pytest.mark.parametrize("inputs", [320, 1000])
def test_bits_do_not_depend_on_who_sums_the_sections(monkeypatch, device, dtype, inputs):
    x, weight, bias = operands(5, 40, inputs, dtype, device)
    results = []
    for tiles in (SPLIT, WALK, dataclasses.replace(SPLIT, block_n=32)):
        use(monkeypatch, tiles)
        results.append(kernels.linear(x, weight, bias))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_counters_are_left_at_zero(monkeypatch, device):
    use(monkeypatch, SPLIT)
    x, weight, bias = operands(70, 130, 300, torch.float32, device)
    first = kernels.linear(x, weight, bias)
    assert not triton_linear._arrivals(device).any()
    assert torch.equal(kernels.linear(x, weight, bias), first)


def test_leading_dimensions_strides_and_no_rows(device, dtype):
    x, weight, _ = operands(12, 32, 64, dtype, device)
    flat = kernels.linear(x, weight)
    assert torch.equal(kernels.linear(x.view(3, 4, 64), weight), flat.view(3, 4, 32))
    assert torch.equal(kernels.linear(torch.cat([x, x], 1)[:, :64], weight), flat)
    assert torch.equal(kernels.linear(x.T.contiguous().T, weight), flat)
    assert kernels.linear(x[:0], weight).shape == (0, 32)


def test_without_batch_invariance_torch_computes(device, monkeypatch):
    x, weight, bias = operands(3, 32, 64, torch.float32, device)
    monkeypatch.setattr(triton_linear, "launch", None)
    kernels.set_batch_invariant(False)
    try:
        assert torch.equal(kernels.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    finally:
        kernels.set_batch_invariant(True)


def test_operands_that_do_not_fit(device):
    x, weight, _ = operands(3, 32, 64, torch.float32, device)
    for other in (weight[:, :32], weight.half(), weight.T.contiguous().T):
        with pytest.raises(ValueError, match="does not fit a weight"):
            kernels.linear(x, other)
