"""Packed products: every format on every instruction set, against float64 over the values that are held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quire import kernels
from quire.kernels import PACKED_FORMATS, PackedFormat, reference

# [out, in]: a model's, neither a multiple of a panel nor of a line, one of each, longer than a cache.
SIZES = [(960, 576), (37, 70), (33, 1), (1, 257), (64, 4096), (50, 80)]


@pytest.fixture(params=PACKED_FORMATS)
def packed_format(request: pytest.FixtureRequest) -> PackedFormat:
    name: PackedFormat = request.param
    return name


def random_weight(out_features: int, in_features: int, packed_format: PackedFormat, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    return weight if packed_format == "float32" else weight.bfloat16()


def random_rows(rows: int, in_features: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_survive_packing(packed_format: PackedFormat, size: tuple[int, int]) -> None:
    weight = random_weight(*size, packed_format)
    held = kernels.pack_weight(weight, packed_format).dequantise()
    if packed_format in ("float32", "bfloat16"):
        assert torch.equal(held, weight.float())
        return
    error = held - weight.float()
    if packed_format == "int4":
        # Scales are searched for: no group is worse off than with the plain one (whose rounding to bfloat16 is free).
        groups = torch.nn.functional.pad(weight.float(), (0, -size[1] % 32)).view(size[0], -1, 32)
        step = groups.abs().amax(2, keepdim=True).clamp(min=1e-30) / 7
        plain = ((groups / step).round() * step - groups).square().sum()
        assert error.square().sum() <= plain * 1.001
    else:
        step = weight.float().abs().amax(1, keepdim=True) / 127
        assert (error.abs() <= 0.501 * step).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(isa: str, packed_format: PackedFormat, size: tuple[int, int]) -> None:
    weight = kernels.pack_weight(random_weight(*size, packed_format), packed_format, torch.randn(size[0]))
    for rows in (1, 2, 5, 16, 33):
        x = random_rows(rows, size[1])
        torch.testing.assert_close(kernels.linear(x, weight), reference.linear(x, weight), rtol=1e-4, atol=2e-5)


def test_a_rows_bits_do_not_depend_on_the_others(isa: str, packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(100, 333, packed_format), packed_format)
    x = random_rows(131, 333)
    together = kernels.linear(x, weight)
    for first, last in ((0, 1), (7, 8), (130, 131), (0, 2), (3, 16), (5, 29), (40, 104), (1, 131)):
        assert torch.equal(kernels.linear(x[first:last], weight), together[first:last])


def test_threads_do_not_show(isa: str, packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(500, 600, packed_format), packed_format)
    x = random_rows(70, 600)
    results = []
    for threads in (1, 2, 3, 5):
        kernels.set_num_threads(threads)
        results.append(kernels.linear(x, weight))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_need_not_be_dense(isa: str, packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(40, 64, packed_format), packed_format)
    wide = random_rows(9, 200)
    assert torch.equal(kernels.linear(wide[:, 70:134], weight), kernels.linear(wide[:, 70:134].contiguous(), weight))


def test_rows_of_zeros_and_of_extremes(isa: str, packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(40, 64, packed_format), packed_format)
    x = torch.zeros(3, 64)
    x[1, 5] = 3e30
    x[2] = 1e-30
    result = kernels.linear(x, weight)
    assert torch.equal(result[0], torch.zeros(40))
    torch.testing.assert_close(result, reference.linear(x, weight), rtol=1e-2, atol=1e-30)


def test_joined_matrices_are_one(packed_format: PackedFormat) -> None:
    parts = [random_weight(size, 48, packed_format, seed=size) for size in (64, 32, 40)]
    joined = kernels.pack_weight(parts, packed_format)
    assert torch.equal(joined.data, kernels.pack_weight(torch.cat(parts), packed_format).data)


def test_no_rows(packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(40, 64, packed_format), packed_format)
    assert kernels.linear(torch.empty(0, 64), weight).shape == (0, 40)


def test_torch_computes_the_same(packed_format: PackedFormat) -> None:
    weight = kernels.pack_weight(random_weight(40, 64, packed_format), packed_format)
    x = random_rows(4, 64)
    native = kernels.linear(x, weight)
    kernels.set_implementation("torch")
    torch.testing.assert_close(kernels.linear(x, weight), native, rtol=1e-4, atol=2e-5)


def test_arguments_are_checked() -> None:
    weight = torch.randn(8, 16)
    with pytest.raises(ValueError, match="packed_format must be one of"):
        kernels.pack_weight(weight, "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight must be float32 or bfloat16"):
        kernels.pack_weight(weight.double(), "int8")
    with pytest.raises(ValueError, match="contiguous rows"):
        kernels.pack_weight(weight.T, "int8")
    with pytest.raises(ValueError, match="bias must be float32"):
        kernels.pack_weight(weight, "int8", torch.zeros(7))
    with pytest.raises(ValueError, match="out must be"):
        kernels.pack_weight(weight, "int8", out=torch.empty(5, dtype=torch.uint8))
    packed = kernels.pack_weight(weight, "int8")
    with pytest.raises(ValueError, match="x must be float32"):
        kernels.linear(torch.zeros(1, 15), packed)
    with pytest.raises(ValueError, match="x must have contiguous rows"):
        kernels.linear(torch.zeros(16, 4).T, packed)
    with pytest.raises(ValueError, match="bias must be None"):
        kernels.linear(torch.zeros(1, 16), packed, torch.zeros(8))


def test_weights_that_are_no_numbers_are_refused() -> None:
    weight = torch.randn(8, 64)
    weight[3, 5] = torch.nan
    for packed_format in ("int8", "int8_weight_only", "int4"):
        with pytest.raises(ValueError, match="finite"):
            kernels.pack_weight(weight, packed_format)
