"""The dense matrix product of the model's weights."""

from torch import Tensor
from torch.nn import functional

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ weight.T + bias.

    Torch's own product for now: its order of sums may depend on the number of rows, so a token's bits may
    depend on its batch. The native product that takes this name's place must not.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features] of the same dtype.
        bias: [out_features] or None.

    Returns:
        [..., out_features].
    """
    return functional.linear(x, weight, bias)
