"""How a product with a weight matrix is cut up: what decides its bits, and what only decides its speed.

**Bits.** The inputs are cut into sections (`sections`), a function of the matrix alone: never of the number of rows,
nor of the GPU or a table. Changing it changes results: raise NUMERICS_VERSION.

**Speed.** Tiles, warps, stages and who sums a section (`Tiles`) come from the tables of `tuning.py`. No row's result
depends on them: a tile has 64 rows or a multiple on Hopper, so that one instruction (wgmma, 64 rows a warpgroup)
computes all of them, and an output's sum runs over the inputs in steps of that instruction whatever the tile's size.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

import torch

from .tuning import INTERPRETER, Config, Gpu, TableError, configuration

__all__ = ["ROW_CLASSES", "Sections", "Tiles", "default_tiles", "row_class", "sections", "shape_classes", "tiles_for"]

# Of one row of a tile: a line of the cache, and the widest pattern in which wgmma reads shared memory.
_LINE_BYTES: Final = 128

# Decode reads a matrix once, and wants as many programs at it as hide the memory's latency: two for each of 132
# multiprocessors, with 64 outputs each. More than eight sections cost more in partial results than they bring.
_PROGRAMS: Final = 264
_PROGRAM_OUTPUTS: Final = 64
_MAX_SECTIONS: Final = 8
_MIN_SECTION_BLOCKS: Final = 4

_HOPPER: Final = 90

#: Up to how many rows a class of tiles is for; beyond the last is one more.
ROW_CLASSES: Final = (16, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Sections:
    """Where a sum over the inputs is cut.

    Attributes:
        block_k: inputs that are multiplied at a time; FP8 sums are also rounded to float32 this often.
        blocks: of block_k inputs, that a section has; the last may have fewer.
        count: of sections.
    """

    block_k: int
    blocks: int
    count: int


@functools.cache
def sections(out_features: int, in_features: int, itemsize: int) -> Sections:
    """The sections of a matrix whose elements have `itemsize` bytes."""
    block_k = _LINE_BYTES // itemsize
    blocks = -(-in_features // block_k)
    wanted = round(_PROGRAMS / -(-out_features // _PROGRAM_OUTPUTS))
    each = max(_MIN_SECTION_BLOCKS, -(-blocks // max(1, min(wanted, _MAX_SECTIONS))))
    return Sections(block_k, each, max(1, -(-blocks // each)))


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a table may set.

    Attributes:
        block_m: rows of a tile.
        block_n: outputs of a tile.
        group_m: tiles of rows that follow one another before the next outputs, so that they find them in the L2.
        split: whether each section has a program of its own; otherwise one program walks over all.
    """

    block_m: int
    block_n: int
    group_m: int
    split: bool
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, config: Config) -> Tiles:
        """From a table's entry."""
        sizes = {name: value for name, value in config.items() if name != "split"}
        return cls(split=bool(config["split"]), **sizes)

    @property
    def config(self) -> Config:
        """As a table's entry."""
        return {name: int(value) for name, value in dataclasses.asdict(self).items()}

    def shared_bytes(self, dtype: torch.dtype, gpu: Gpu) -> int:
        """Shared memory of the pipeline: wgmma still reads one more stage while the others are being filled."""
        stages = self.num_stages if _has_wgmma(dtype, gpu) else max(1, self.num_stages - 1)
        return (self.block_m + self.block_n) * _LINE_BYTES * stages

    def problem(self, dtype: torch.dtype, gpu: Gpu) -> str | None:
        """Why these tiles cannot be used, if so."""
        if (needed := self.shared_bytes(dtype, gpu)) > gpu.shared_memory:
            return f"{needed} bytes of shared memory are more than {gpu.shared_memory}"
        if _has_wgmma(dtype, gpu) and (self.block_m % 64 or self.num_warps % 4):
            return "wgmma needs a block_m of 64 rows or a multiple and num_warps of 4 or a multiple"
        return None


def _has_wgmma(dtype: torch.dtype, gpu: Gpu) -> bool:
    return gpu.capability >= _HOPPER and dtype.itemsize <= 2


def row_class(rows: int) -> str:
    """The class of a number of rows, such as "m<=64"."""
    return next((f"m<={bound}" for bound in ROW_CLASSES if rows <= bound), f"m>{ROW_CLASSES[-1]}")


def shape_classes(rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> tuple[str, str]:
    """Names in a table: this matrix with that many rows, and any matrix with that many rows."""
    name, row = str(dtype).removeprefix("torch."), row_class(rows)
    return f"{name} n{out_features} k{in_features} {row}", f"{name} {row}"


def tiles_for(rows: int, out_features: int, in_features: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    """The tiles for a product. Raises TableError."""
    # One answer for each class of rows: the number itself changes from step to step.
    return _tiles_for(bisect.bisect_left(ROW_CLASSES, rows), out_features, in_features, dtype, gpu)


@functools.cache
def _tiles_for(row_class_index: int, out_features: int, in_features: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    rows = (*ROW_CLASSES, ROW_CLASSES[-1] + 1)[row_class_index]
    cut = sections(out_features, in_features, dtype.itemsize)
    classes = shape_classes(rows, out_features, in_features, dtype)
    default = default_tiles(rows, cut.count, dtype, gpu)
    tiles = Tiles.of(configuration("linear", classes, gpu, default.config))
    if problem := tiles.problem(dtype, gpu):
        raise TableError(f"tiles for {classes[0]} on {gpu.name}: {problem}")
    return tiles


def default_tiles(rows: int, num_sections: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    """The tiles that no table has: reasoned from the architecture's limits, not measured."""
    tiles = _default_tiles(rows, num_sections, dtype, gpu)
    while tiles.num_stages > 1 and tiles.shared_bytes(dtype, gpu) > gpu.shared_memory:
        tiles = dataclasses.replace(tiles, num_stages=tiles.num_stages - 1)
    return tiles


def _default_tiles(rows: int, num_sections: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    if dtype == torch.float32:  # no matrix units: each thread multiplies for itself
        return Tiles(16 if rows <= 16 else 64, 64, 8, rows <= 64, num_warps=4 if rows <= 16 else 8, num_stages=3)
    hopper = gpu.capability >= _HOPPER or gpu == INTERPRETER
    if rows <= 64:
        # Many bytes in flight: two programs on a multiprocessor on Hopper, 48 KiB of weights each.
        if hopper:
            return Tiles(64, 128, 1, True, num_warps=4, num_stages=4)
        if rows <= 16:
            return Tiles(16, 64, 1, True, num_warps=4, num_stages=5)
        return Tiles(64, 64, 1, True, num_warps=8, num_stages=4)
    if rows <= 256:
        return Tiles(128, 128, 2, True, num_warps=8, num_stages=3)
    if hopper and num_sections == 1 and dtype.itemsize == 2:
        # 128 registers of sums a thread: there is no room for a second sum, of sections or of FP8's steps. The tile of
        # 128 x 256 that reads less shared memory is compiled into one wgmma after the other (ptxas of Triton 3.6).
        return Tiles(256, 128, 4, False, num_warps=8, num_stages=4)
    return Tiles(128, 128, 8, False, num_warps=8, num_stages=4)
