"""Paged attention in Triton: decode and chunked prefill in one launch.

Queries meet their context a tile of keys at a time, with an online softmax (FlashAttention-2, Dao, arXiv 2307.08691)
within a section of the context; the sums of sections are added in order of position. Whether one program walks over
all sections or several take some each and a second kernel adds up, the operations of a row and their order are the
same, so its result is the same bit for bit: alone or in any batch, as a step of decoding or in a chunk of prefill.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels import attention_work
from quire.kernels.attention_work import ITEM, MERGE, MERGE_ROWS, TILE_ROWS, AttentionWork, WorkShape, work_shape
from quire.kernels.cache import Cache, QuantizedCache, elements
from quire.kernels.metadata import AttentionMetadata

from .attention_kernel import attend
from .attention_sections import merge
from .launch import launch
from .tuning import INTERPRETER, Gpu, configuration, gpu_of

__all__ = ["paged_attention"]

_UNLIMITED = 2**31 - 1
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class _Tiling:
    """A tile of keys, and how its launch is cut: keys and warps decide bits, so no table may set them."""

    keys: int
    num_warps: int
    num_stages: int


def paged_attention(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """As `attention.paged_attention`, unchecked; nothing is read on the host if the metadata has its work.

    Products are of the wider type of query and cache; a quantised cache is multiplied in the query's type, keys' scales
    meet the scores and values' scales the weights. Padding (see `WorkShape.plan`) leaves its rows of the result as they
    were allocated.

    Limits. Decode reads each visible key and value once for each KV head: 2 * num_kv_heads * head_dim * bytes of an
    element * context tokens / memory bandwidth (plus 8 bytes of scales for each token and KV head). Prefill computes
    4 * num_heads * head_dim operations for each query and visible key / rate of the matrix units.
    """
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    keys, values = elements(key_cache), elements(value_cache)
    _, num_kv_heads, block_size, head_dim = keys.shape
    shape = work_shape(query.shape[1], num_kv_heads, query.device)
    work = _planned(metadata, shape) if metadata.work is None else metadata.work
    key_scales = key_cache.scales if isinstance(key_cache, QuantizedCache) else None
    value_scales = value_cache.scales if isinstance(value_cache, QuantizedCache) else None
    compute = query.dtype if key_scales is not None else torch.promote_types(query.dtype, keys.dtype)
    gpu = gpu_of(query.device)
    decode_fp8 = keys.dtype == torch.float8_e4m3fn and gpu.capability < 89  # which have no instruction for it
    block_dim = max(16, triton.next_power_of_2(head_dim))
    tiling = _tiling(gpu, block_dim, keys.dtype, compute)
    window = sliding_window or _UNLIMITED
    partial_acc = query.new_empty((num_kv_heads, work.partial_rows, head_dim), dtype=torch.float32)
    partial_stats = query.new_empty((2, num_kv_heads, work.partial_rows), dtype=torch.float32)
    launch(
        attend,
        (shape.num_programs,),
        output,
        partial_acc,
        partial_stats,
        query,
        keys.view(torch.uint8) if decode_fp8 else keys,
        values.view(torch.uint8) if decode_fp8 else values,
        key_scales,
        value_scales,
        metadata.query_start,
        metadata.context_lens,
        metadata.block_tables,
        work.items,
        work.counts,
        *output.stride()[:2],
        *query.stride()[:2],
        *keys.stride()[:2],
        *values.stride()[:2],
        *(key_scales.stride()[:2] if key_scales is not None else (0, 0)),
        *(value_scales.stride()[:2] if value_scales is not None else (0, 0)),
        metadata.block_tables.stride(0),
        num_kv_heads,
        work.partial_rows,
        scale * math.log2(math.e),
        window,
        GROUP=shape.group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_SIZE=block_size,
        ROWS=TILE_ROWS,
        KEYS=tiling.keys,
        SECTION=attention_work.SECTION,
        WINDOWED=sliding_window is not None,
        QUANTIZED=key_scales is not None,
        COMPUTE=_TYPES[compute],
        PRECISION="ieee",
        ITEM_COLUMNS=len(ITEM),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if work.partial_rows:
        launch(
            merge,
            (shape.num_programs,),
            output,
            partial_acc,
            partial_stats,
            metadata.query_start,
            metadata.context_lens,
            work.merges,
            work.counts,
            *output.stride()[:2],
            num_kv_heads,
            work.partial_rows,
            window,
            GROUP=shape.group,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            ROWS=MERGE_ROWS,
            SECTION=attention_work.SECTION,
            WINDOWED=sliding_window is not None,
            MERGE_COLUMNS=len(MERGE),
            num_warps=4,
        )
    return output


def _planned(metadata: AttentionMetadata, shape: WorkShape) -> AttentionWork:
    """The work of a step whose maker has not planned it: waits for the device, once for all layers."""
    work = shape.plan(*metadata.lengths()).to(metadata.query_start.device)
    object.__setattr__(metadata, "work", work)
    return work


@functools.cache
def _tiling(gpu: Gpu, block_dim: int, element: torch.dtype, compute: torch.dtype) -> _Tiling:
    """By default two programs have room on a multiprocessor: reasoned from its memory and registers, not measured."""
    if gpu == INTERPRETER:
        return _Tiling(64, 1, 1)
    hopper, wide = gpu.capability >= 90, block_dim > 128
    if compute == torch.float32:  # no matrix unit has its precision: operands come through registers
        tiling = _Tiling(16, 8, 2)  # a third stage costs registers that sm_89 does not have
    else:
        tiling = _Tiling(64 if hopper and not wide else 32, 8 if wide else 4, 5 if hopper and not wide else 3)
    # Otherwise an odd number: blocks' ids are fetched as far ahead of their keys as keys are of the product.
    shape = f"{str(element).removeprefix('torch.')} head_dim {block_dim}"
    table = configuration("attention", [shape], gpu, {"num_stages": tiling.num_stages})
    return dataclasses.replace(tiling, num_stages=table["num_stages"])
