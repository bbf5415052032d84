"""Root mean square norm: Zhang and Sennrich (arXiv 1910.07467), in the order of transformers' Llama."""

import torch
from torch import Tensor

from .backend import implementation_for

__all__ = ["fused_add_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm the last dimension: weight * (x / sqrt(mean(x ** 2) + eps)).

    Computed in float32, cast back to x's dtype, then multiplied by the weight: in torch equal to LlamaRMSNorm bit for
    bit, in Triton but for the order of the sum. A row's result does not depend on the others.

    Args:
        x: [..., size], any floating dtype.
        weight: [size].
        eps: added to the mean square.

    Returns:
        x's shape; the dtype torch promotes x's and weight's to.
    """
    if implementation_for(x.device) == "triton":
        from .triton import norm

        return norm.rms_norm(x, weight, eps)
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(variance + eps)).to(x.dtype)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream, and norm the sum.

    Args:
        x: [..., size].
        residual: as x.
        weight: [size].
        eps: as in `rms_norm`.

    Returns:
        (rms_norm(residual + x), residual + x); neither argument is written.
    """
    if implementation_for(x.device) == "triton":
        from .triton import norm

        return norm.fused_add_rms_norm(x, residual, weight, eps)
    total = residual + x
    return rms_norm(total, weight, eps), total
