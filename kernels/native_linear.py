"""The calls into the packed products: native/quire_linear.h."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .native_library import call, declare, library

if TYPE_CHECKING:
    import numpy as np

    from .packed_weight import PackedWeight

__all__ = ["PackedMatrix", "linear", "pack", "packed_bytes", "packed_matrix", "unpack"]


class PackedMatrix(ctypes.Structure):
    """quire_packed_matrix of native/quire_linear.h, field by field."""

    _fields_: ClassVar = [
        ("data", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("format", c_int32),
    ]


_ERROR = (c_char_p, c_size_t)
declare("quire_packed_bytes", c_int64, c_int32, c_int64, c_int64)
declare("quire_pack", c_int32, c_int32, c_int32, c_void_p, c_int64, c_int64, c_void_p, *_ERROR)
declare("quire_unpack", c_int32, c_void_p, c_void_p, *_ERROR)
declare("quire_linear", c_int32, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32, *_ERROR)


def packed_bytes(number: int, out_features: int, in_features: int) -> int:
    """As `packed_weight.packed_bytes`, for a format's number."""
    size: int = library().quire_packed_bytes(number, out_features, in_features)
    return size


def pack(number: int, dtype: int, rows: np.ndarray, in_features: int, out: Tensor) -> None:
    """As `packed_weight.pack_weight`, which checks; `rows` are addresses, uint64."""
    call("quire_pack", number, dtype, rows.ctypes.data, len(rows), in_features, out.data_ptr())


def packed_matrix(weight: PackedWeight) -> PackedMatrix:
    """The C structure; it borrows the tensors' memory."""
    from .packed_weight import PACKED_FORMATS

    bias = weight.bias.data_ptr() if weight.bias is not None else None
    return PackedMatrix(
        weight.data.data_ptr(), bias, weight.out_features, weight.in_features, PACKED_FORMATS.index(weight.format)
    )


def unpack(weight: PackedWeight) -> Tensor:
    """As `PackedWeight.dequantise`."""
    values = torch.empty(weight.out_features, weight.in_features)
    call("quire_unpack", byref(packed_matrix(weight)), values.data_ptr())
    return values


def linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """float32 [rows, in_features] to float32 [rows, out_features]."""
    output = torch.empty(x.shape[0], weight.out_features)
    call(
        "quire_linear",
        byref(packed_matrix(weight)),
        x.data_ptr(),
        x.stride(0),
        x.shape[0],
        output.data_ptr(),
        output.stride(0),
        0,
    )
    return output
