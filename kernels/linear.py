"""The product with a weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import native_linear, reference
from .backend import implementation_for
from .packed_weight import PackedWeight

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ weight.T + bias.

    With a packed weight, a row's bits do not depend on the other rows: every output sums its inputs in one order,
    whatever is computed beside it. With a plain one it is torch's product, whose order may depend on how many rows
    there are.

    Args:
        x: [..., in_features], of the weight's dtype, or float32 [rows, in_features] with contiguous rows if it is
            packed.
        weight: [out_features, in_features], or packed.
        bias: [out_features] or None; a packed weight brings its own.

    Returns:
        [..., out_features], of x's dtype.

    Raises:
        ValueError: x does not fit the packed weight.
    """
    if isinstance(weight, Tensor):
        return functional.linear(x, weight, bias)
    if bias is not None:
        raise ValueError("bias must be None: a packed weight brings its own")
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be float32 [rows, {weight.in_features}], not {x.dtype} {list(x.shape)}")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ValueError("x must have contiguous rows")
    if implementation_for(x.device) == "native":
        return native_linear.linear(x, weight)
    return reference.linear(x, weight)
