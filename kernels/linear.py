"""The product with a weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import native_linear, reference
from .backend import batch_invariant, implementation_for
from .fp8_weight import Fp8Weight
from .packed_weight import PackedWeight

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor | PackedWeight | Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ weight.T + bias.

    A row's bits do not depend on the other rows: every output sums its inputs in one order, whatever is computed beside
    it. Two plain operands are an exception where torch computes (`set_batch_invariant(False)`, or no Triton): its order
    may depend on how many rows there are.

    Args:
        x: [..., in_features], of the weight's dtype, of any floating one if that is FP8, or float32 [rows, in_features]
            with contiguous rows if it is packed.
        weight: [out_features, in_features], plain, in FP8 or packed.
        bias: [out_features] or None; a packed weight brings its own.

    Returns:
        [..., out_features], of x's dtype.

    Raises:
        ValueError: x does not fit the weight.
    """
    if isinstance(weight, PackedWeight):
        return _packed_linear(x, weight, bias)
    triton = implementation_for(x.device) == "triton"
    if isinstance(weight, Fp8Weight):
        if not triton:
            return reference.fp8_linear(x, weight, bias)
        from .triton.fp8_linear import fp8_linear

        return fp8_linear(x, weight, bias)
    if not triton or not batch_invariant():
        return functional.linear(x, weight, bias)
    from .triton import linear as triton_linear

    return triton_linear.linear(x, weight, bias)


def _packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    if bias is not None:
        raise ValueError("bias must be None: a packed weight brings its own")
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be float32 [rows, {weight.in_features}], not {x.dtype} {list(x.shape)}")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ValueError("x must have contiguous rows")
    if implementation_for(x.device) == "native":
        return native_linear.linear(x, weight)
    return reference.linear(x, weight)
