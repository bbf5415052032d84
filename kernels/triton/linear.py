"""The product with a weight matrix: x @ weight.T + bias, in sections that are added in order (`linear_plan.py`).

**Limit.** With few rows, a step reads all weights and does little else: out·in·itemsize bytes over the memory's
bandwidth. With many, the matrix units: 2·rows·out·in operations over their rate.

**What batch invariance costs**, by construction (not measured yet):
- few rows are computed as a full tile, 64 rows on Hopper. It multiplies zeros while it waits for weights: 64 operations
  for each byte in 16 bits, a third or less of what an H100 does in the time of that byte;
- where each section has a program, rows·out·4 bytes a section are written and read once more. They stay in the L2;
- where one program walks over sections, it holds two sums, which bounds the tile at 128 × 128 outputs.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .linear_plan import Tiles, sections, tiles_for
from .tuning import gpu_of

__all__ = ["linear", "product"]

# Counters of tiles, 16 KiB. More tiles than that do not need sections side by side to fill a GPU.
_MAX_SPLIT_TILES: Final = 4096

# Rows whose partial results are added up at a time: few, so that those of all sections are in flight together.
_MERGED_ROWS: Final = 16


@triton.jit
def _write(
    y, total, bias, x_scales, weight_scales, row, column, rows, outputs,
    BIAS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Applies scales and bias in float32, rounds once, and stores a tile of y."""
    in_rows, in_columns = row < rows, column < outputs
    if SCALED:
        total *= tl.load(x_scales + row, mask=in_rows, other=0.0)[:, None]
        total *= tl.load(weight_scales + column, mask=in_columns, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


# Rows change from step to step and sections from matrix to matrix: nothing is to be compiled for a number of them.
@triton.jit(do_not_specialize=["rows", "section_blocks"])
def _linear(
    x, weight, bias, x_scales, weight_scales, y, partials, arrivals,
    rows, outputs, inputs, x_stride, section_blocks,
    SPLIT: tl.constexpr, WALK: tl.constexpr, BIAS: tl.constexpr, SCALED: tl.constexpr, EVEN_K: tl.constexpr,
    MERGED_ROWS: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One of SPLIT sections of a tile of y, or if that is 1 a whole tile: in sections if WALK."""
    program = tl.program_id(0)
    section = program % SPLIT
    tile = program // SPLIT
    # A few tiles of rows against the same outputs, then the next outputs: both are found in the L2.
    row_tiles = tl.cdiv(rows, BLOCK_M)
    group_size = GROUP_M * tl.cdiv(outputs, BLOCK_N)
    first_row_tile = tile // group_size * GROUP_M
    height = tl.minimum(row_tiles - first_row_tile, GROUP_M)
    row_tile = first_row_tile + tile % group_size % height
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile % group_size // height * BLOCK_N + tl.arange(0, BLOCK_N)

    blocks = tl.cdiv(inputs, BLOCK_K)
    first = section * section_blocks
    last = tl.minimum(first + section_blocks, blocks) if SPLIT > 1 else blocks
    k = tl.arange(0, BLOCK_K)
    x_tile = x + row.to(tl.int64)[:, None] * x_stride + (first * BLOCK_K + k)[None, :]
    weight_tile = weight + column.to(tl.int64)[None, :] * inputs + (first * BLOCK_K + k)[:, None]
    # Nothing is read for rows and outputs that are not there.
    in_x, in_weight = (row < rows)[:, None], (column < outputs)[None, :]

    end_of_section = section_blocks
    if WALK:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sum_of_section = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for block in range(first, last):
        if EVEN_K:
            a = tl.load(x_tile, mask=in_x, other=0.0)
            b = tl.load(weight_tile, mask=in_weight, other=0.0)
        else:
            inside = block * BLOCK_K + k < inputs
            a = tl.load(x_tile, mask=in_x & inside[None, :], other=0.0)
            b = tl.load(weight_tile, mask=in_weight & inside[:, None], other=0.0)
        if SCALED:
            # Hopper adds FP8 products up in about 14 bits (DeepSeek-V3, arXiv:2412.19437, section 3.3.2): the sum of
            # each block is added in float32.
            sum_of_section = tl.dot(a, b, sum_of_section, max_num_imprecise_acc=BLOCK_K)
        else:
            sum_of_section = tl.dot(a, b, sum_of_section, input_precision="ieee")
        x_tile += BLOCK_K
        weight_tile += BLOCK_K
        if WALK:  # noqa: SIM102 (known when compiled, unlike the next)
            if block + 1 == end_of_section:
                end_of_section += section_blocks
                total += sum_of_section
                sum_of_section = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if SPLIT > 1:
        partial = column[None, :] + row.to(tl.int64)[:, None] * outputs
        size = rows.to(tl.int64) * outputs
        tl.store(partials + section * size + partial, sum_of_section, mask=in_x & in_weight)
        tl.debug_barrier()  # all threads have stored: the arrival of one of them publishes it
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.store(arrivals + tile, 0)  # for the next launch
            for start in range(row_tile * BLOCK_M, tl.minimum((row_tile + 1) * BLOCK_M, rows), MERGED_ROWS):
                merged = start + tl.arange(0, MERGED_ROWS)
                place = partials + column[None, :] + merged.to(tl.int64)[:, None] * outputs
                present = (merged < rows)[:, None] & in_weight
                added = tl.zeros([MERGED_ROWS, BLOCK_N], tl.float32)
                for index in tl.static_range(SPLIT):
                    # From the L2: other multiprocessors wrote them.
                    added += tl.load(place + index * size, mask=present, other=0.0, cache_modifier=".cg")
                _write(y, added, bias, x_scales, weight_scales, merged, column, rows, outputs, BIAS, SCALED)
    else:
        if WALK:
            sum_of_section += total
        _write(y, sum_of_section, bias, x_scales, weight_scales, row, column, rows, outputs, BIAS, SCALED)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ weight.T + bias, with float32 sums.

    A row's bits do not depend on the other rows. Limit: weight bytes over the bandwidth, or 2·rows·out·in operations
    over the rate of the matrix units, whichever takes longer.

    Args:
        x: [..., in_features], bfloat16, float16 or float32 (which is not rounded to TF32).
        weight: [out_features, in_features] of x's type, contiguous.
        bias: [out_features] or None.

    Returns:
        [..., out_features], of x's type.
    """
    y = product(x.reshape(-1, x.shape[-1]), weight, bias, x.dtype)
    return y.view(*x.shape[:-1], len(weight))


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    scales: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Launches the product of [rows, in_features] with a matrix.

    Args:
        x: with contiguous rows.
        weight: [out_features, in_features], contiguous, of x's type.
        bias: [out_features] or None.
        dtype: of the result.
        scales: of FP8: float32 [rows] of x and [out_features] of the weight.
        tiles: other ones than the tables', to measure them.

    Returns:
        [rows, out_features].

    Raises:
        ValueError: the operands do not fit each other.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    if weight.shape[1] != inputs or weight.dtype != x.dtype or not weight.is_contiguous():
        raise ValueError(f"{x.dtype} {list(x.shape)} does not fit a weight {weight.dtype} {list(weight.shape)}")
    if x.stride(1) != 1:
        x = x.contiguous()
    y = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if rows == 0:
        return y
    cut = sections(outputs, inputs, x.element_size())
    tiles = tiles or tiles_for(rows, outputs, inputs, x.dtype, gpu_of(x.device))
    count = triton.cdiv(rows, tiles.block_m) * triton.cdiv(outputs, tiles.block_n)
    split = cut.count if tiles.split and count <= _MAX_SPLIT_TILES else 1
    # What is not there is not read; a pointer must be given all the same.
    partials = torch.empty((cut.count, rows, outputs), dtype=torch.float32, device=x.device) if split > 1 else y
    arrivals = _arrivals(x.device)  # by large products too: the first may not stand in a graph
    x_scales, weight_scales = scales or (y, y)
    launch(
        _linear,
        (count * split,),
        *(x, weight, y if bias is None else bias, x_scales, weight_scales, y),
        *(partials, arrivals),
        *(rows, outputs, inputs, x.stride(0), cut.blocks),
        SPLIT=split,
        WALK=cut.count > split,
        BIAS=bias is not None,
        SCALED=scales is not None,
        EVEN_K=inputs % cut.block_k == 0,
        MERGED_ROWS=_MERGED_ROWS,
        GROUP_M=tiles.group_m,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=cut.block_k,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return y


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """Counters of the sections that are there, all 0 between launches: whoever comes last resets its tile's.

    One stream of a device may compute at a time. A captured graph keeps the address; a capture must not be the first to
    ask, since its memory is not there before it is replayed.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the first product must not be captured: its counters are made outside of graphs")
    return torch.zeros(_MAX_SPLIT_TILES, dtype=torch.int32, device=device)
