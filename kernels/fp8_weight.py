"""A matrix in FP8 (e4m3) with one scale for each output, and how anything becomes FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["FP8", "Fp8Weight", "quantize_fp8"]

FP8: Final = torch.float8_e4m3fn
_MAX: Final = torch.finfo(FP8).max


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight matrix, quantised.

    Attributes:
        data: float8_e4m3fn [out_features, in_features].
        scales: float32 [out_features], which the elements are multiplied by.
    """

    data: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.data.dtype != FP8 or self.data.dim() != 2:
            raise ValueError(f"data must be {FP8} [out, in], not {self.data.dtype} {list(self.data.shape)}")
        if self.scales.dtype != torch.float32 or self.scales.shape != self.data.shape[:1]:
            raise ValueError(f"scales must be float32 [{len(self.data)}]")

    @classmethod
    def quantize(cls, matrix: Tensor) -> Fp8Weight:
        """Raises ValueError for a matrix with infinities or NaN."""
        return cls(*quantize_fp8(matrix))

    @property
    def nbytes(self) -> int:
        """Memory of elements and scales."""
        return self.data.nbytes + self.scales.nbytes

    def dequantise(self) -> Tensor:
        """float32 [out_features, in_features]: the values that it stands for."""
        return self.data.float() * self.scales[:, None]


def quantize_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by its largest magnitude, which becomes 448; a row of zeros has the scale 0.

    Args:
        values: [rows, n], of any floating type.

    Returns:
        float8_e4m3fn [rows, n] and float32 [rows]: elements and scales.

    Raises:
        ValueError: there are infinities or NaN, which no scale covers.
    """
    values = values.float()
    scales = values.abs().amax(dim=1) / _MAX
    if not torch.isfinite(scales).all():
        raise ValueError("there are infinities or NaN")
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    # What rounding has lifted above the largest number would be NaN.
    return (values / divisor[:, None]).clamp(-_MAX, _MAX).to(FP8), scales
