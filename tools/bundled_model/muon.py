"""Muon: momentum whose every step is turned into the nearest orthogonal matrix.

Torch has one too, but it iterates in bfloat16, which most processors emulate slowly, and one matrix at a
time. Here the matrices of one shape are stacked and the arithmetic stays in float32; a step then costs a
third as much.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal(matrices: Tensor) -> Tensor:
    """Push all singular values of a stack of matrices towards one, by five Newton-Schulz steps of the fifth
    degree.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.transpose(-2, -1) if tall else x


class Muon:
    """The optimizer for the weight matrices inside the layers."""

    def __init__(self, weights: Iterable[Tensor], momentum: float = 0.95, decay: float = 0.05) -> None:
        """Group the weights by shape and start with no momentum."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for weight in weights:
            shapes.setdefault(weight.shape, []).append(weight)
        self._stacks = [(stack, torch.zeros(len(stack), *shape)) for shape, stack in shapes.items()]
        self._momentum = momentum
        self._decay = decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step; the factor makes its size per entry like that of Adam at the same rate."""
        for weights, trail in self._stacks:
            slopes = torch.stack([weight.grad for weight in weights if weight.grad is not None])
            trail.lerp_(slopes, 1 - self._momentum)
            moves = orthogonal(slopes.lerp(trail, self._momentum)) * (0.2 * max(slopes.shape[-2:]) ** 0.5)
            for weight, move in zip(weights, moves, strict=True):
                weight.mul_(1 - rate * self._decay).sub_(move, alpha=rate)
