"""Packed columns: arrays of little-endian unsigned integers in `bytes` fields of a message.

One bytes field costs the same however many rows it has; a sub-message per row does not.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

if sys.byteorder != "little":
    raise ImportError("Quire's wire format is little-endian and this machine is not")


def pack_u32(values: Iterable[int]) -> bytes:
    """Packs integers in [0, 2^32). Raises OverflowError for others."""
    return array("I", values).tobytes()


def unpack_u32(column: bytes) -> list[int]:
    """The integers of a u32 column. Raises ValueError if its length is not a multiple of 4."""
    values = array("I")
    values.frombytes(column)
    return values.tolist()


def pack_u64(values: Iterable[int]) -> bytes:
    """Packs integers in [0, 2^64). Raises OverflowError for others."""
    return array("Q", values).tobytes()


def unpack_u64(column: bytes) -> list[int]:
    """The integers of a u64 column. Raises ValueError if its length is not a multiple of 8."""
    values = array("Q")
    values.frombytes(column)
    return values.tolist()
