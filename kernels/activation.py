"""The gated activation of the feed-forward block: SwiGLU, Shazeer (arXiv 2002.05202)."""

from torch import Tensor
from torch.nn import functional

__all__ = ["silu_and_mul"]


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where the last dimension holds gate, then up.

    Args:
        gate_up: [..., 2 * size].

    Returns:
        [..., size] in the same dtype.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
