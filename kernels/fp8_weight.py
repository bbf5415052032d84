"""A weight matrix in FP8 (e4m3), with one scale for each output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .cache import quantize

__all__ = ["FP8", "Fp8Weight"]

FP8: Final = torch.float8_e4m3fn


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
        """By each output's largest magnitude. Raises ValueError for a matrix with infinities or NaN."""
        data, scales = quantize(matrix, FP8)
        if not scales.isfinite().all():
            raise ValueError("weights are not finite")
        return cls(data, scales)

    @property
    def nbytes(self) -> int:
        """Memory of elements and scales."""
        return self.data.nbytes + self.scales.nbytes

    def dequantise(self) -> Tensor:
        """float32 [out_features, in_features]: the values that it stands for."""
        return self.data.float() * self.scales[:, None]
