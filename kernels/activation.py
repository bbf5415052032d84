"""The gated activation of the feed-forward block: SwiGLU, Shazeer (arXiv 2002.05202)."""

from torch import Tensor
from torch.nn import functional

from .backend import implementation_for

__all__ = ["silu_and_mul"]


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Gate one half by the other: silu(gate) * up, where the last dimension holds gate, then up.

    In Triton an element depends on nothing else. Torch's silu leaves what does not fill its vector loop (32 floats) on
    a CPU to a scalar exp that rounds otherwise: where size is no multiple of 32, or torch's threads cut the tensor at
    no multiple of it, an element's last bit may depend on its batch.

    Args:
        gate_up: [..., 2 * size].

    Returns:
        [..., size] in the same dtype.
    """
    if implementation_for(gate_up.device) == "triton":
        from .triton import activation

        return activation.silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
