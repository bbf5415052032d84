"""Weight matrices packed once, at load, in the layout that the native products stream through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from . import native_linear

__all__ = ["PACKED_FORMATS", "PackedFormat", "PackedWeight", "pack_weight", "packed_bytes"]

PackedFormat = Literal["float32", "bfloat16", "int8", "int8_weight_only", "int4"]

#: Every format, in the order of quire_packed_format (native/quire_linear.h).
PACKED_FORMATS: Final[tuple[PackedFormat, ...]] = get_args(PackedFormat)

_SOURCE_DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A packed matrix; `kernels.linear` multiplies by it.

    Attributes:
        data: uint8 [packed_bytes], 64-byte aligned.
        format: how the values are held. float32 and bfloat16 as they are; "int8": a scale per output, and the inputs
            are made int8 too, a scale per row; "int8_weight_only": inputs stay float32; "int4": a bfloat16 scale per
            output and 32 inputs, inputs stay float32.
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        bias: float32 [out_features] or None.
    """

    data: Tensor
    format: PackedFormat
    out_features: int
    in_features: int
    bias: Tensor | None = None

    def dequantise(self) -> Tensor:
        """The values that the packed matrix stands for: float32 [out_features, in_features]."""
        return native_linear.unpack(self)


def packed_bytes(packed_format: PackedFormat, out_features: int, in_features: int) -> int:
    """Bytes of a packed matrix of this size.

    Raises:
        ValueError: the format does not exist.
    """
    return native_linear.packed_bytes(_number(packed_format), out_features, in_features)


def pack_weight(
    weight: Tensor | Sequence[Tensor],
    packed_format: PackedFormat,
    bias: Tensor | None = None,
    *,
    interleave: bool = False,
    out: Tensor | None = None,
) -> PackedWeight:
    """Pack a matrix, or several that read the same input, one below the other; quantise on the way.

    Args:
        weight: float32 or bfloat16 [out_features, in_features] on the CPU, rows contiguous; or a sequence of these.
        packed_format: what to hold the values as.
        bias: float32 [sum of out_features] or None.
        interleave: two matrices of one size, gate and up, in turns of 16 outputs, each filled up with zeros to a
            multiple of 16: what the gated epilogue of the native step wants. Outputs are counted with the filling.
            Without bias.
        out: uint8 memory to pack into, of `packed_bytes` bytes, 64-byte aligned; new memory otherwise.

    Raises:
        ValueError: an argument has another dtype, shape or layout.
    """
    parts = [weight] if isinstance(weight, Tensor) else list(weight)
    in_features = parts[0].shape[-1]
    for part in parts:
        if part.dtype not in _SOURCE_DTYPES or part.dtype != parts[0].dtype or part.device.type != "cpu":
            raise ValueError(f"weight must be float32 or bfloat16 on the CPU, not {part.dtype} on {part.device}")
        if part.dim() != 2 or part.shape[1] != in_features or (part.shape[1] > 1 and part.stride(1) != 1):
            raise ValueError(f"weight must be [out, {in_features}] with contiguous rows, not {list(part.shape)}")
    rows = _interleaved_rows(*parts) if interleave else np.concatenate([_row_addresses(part) for part in parts])
    size = packed_bytes(packed_format, len(rows), in_features)
    if out is None:
        out = torch.empty(size + 63, dtype=torch.uint8)
        out = out[-out.data_ptr() % 64 :][:size]
    if out.dtype != torch.uint8 or out.numel() != size or out.data_ptr() % 64 or not out.is_contiguous():
        raise ValueError(f"out must be {size} aligned, contiguous bytes")
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (len(rows),)):
        raise ValueError(f"bias must be float32 [{len(rows)}], not {bias.dtype} {list(bias.shape)}")
    native_linear.pack(_number(packed_format), _SOURCE_DTYPES[parts[0].dtype], rows, in_features, out)
    return PackedWeight(out, packed_format, len(rows), in_features, bias)


def _number(packed_format: PackedFormat) -> int:
    if packed_format not in PACKED_FORMATS:
        raise ValueError(f"packed_format must be one of {', '.join(PACKED_FORMATS)}, not {packed_format!r}")
    return PACKED_FORMATS.index(packed_format)


def _row_addresses(matrix: Tensor) -> np.ndarray:
    """uint64 [rows]."""
    stride = matrix.stride(0) * matrix.element_size()
    return np.uint64(matrix.data_ptr()) + np.arange(len(matrix), dtype=np.uint64) * np.uint64(stride)


def _interleaved_rows(gate: Tensor, up: Tensor) -> np.ndarray:
    """16 addresses of gate, 16 of up, and so on; 0 stands for a row of zeros."""
    turns = -(-len(gate) // 16)
    both = np.zeros((2, turns * 16), np.uint64)
    both[0, : len(gate)], both[1, : len(up)] = _row_addresses(gate), _row_addresses(up)
    return both.reshape(2, turns, 16).transpose(1, 0, 2).reshape(-1).copy()
