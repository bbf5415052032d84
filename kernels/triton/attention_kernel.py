"""The kernel of triton/attention.py: programs that take items of work in turn."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_sections import add_section, exponent_reference, weighted_mean

__all__ = ["attend"]


# Neither of these is the same in all steps: compiled for its divisors, the kernel would be compiled while it serves.
@triton.jit(do_not_specialize=["partial_rows", "table_stride"])
def attend(
    output, partial_acc, partial_stats, query, keys, values, key_scales, value_scales,
    query_start, context_lens, block_tables, items, counts,
    output_token_stride, output_head_stride, query_token_stride, query_head_stride,
    key_block_stride, key_head_stride, value_block_stride, value_head_stride,
    key_scale_block_stride, key_scale_head_stride, value_scale_block_stride, value_scale_head_stride,
    table_stride, num_kv_heads, partial_rows, scale, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SECTION: tl.constexpr, WINDOWED: tl.constexpr, QUANTIZED: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ITEM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attention of ROWS rows over a run of sections, for each item and KV head; `scale` includes log2(e).

    A row is a new token and one of the GROUP query heads that share the KV head. What it computes does not depend on
    the tile's other rows, on the keys that they see, or on where in which tile it lies: keys are taken KEYS at a time
    from multiples of KEYS on, and those that a row does not see add exact zeros.
    """
    dims = tl.arange(0, BLOCK_DIM)
    slots = tl.arange(0, KEYS)
    rows = tl.arange(0, ROWS)
    in_head = (dims < HEAD_DIM)[None, :]
    for index in range(tl.program_id(0), tl.load(counts) * num_kv_heads, tl.num_programs(0)):
        kv_head = index % num_kv_heads
        item = items + index // num_kv_heads * ITEM_COLUMNS
        sequence = tl.load(item)
        first_row = tl.load(item + 1)
        first_section = tl.load(item + 2)
        last_section = first_section + tl.load(item + 3)  # exclusive
        place = tl.load(item + 4)

        first_token = tl.load(query_start + sequence)
        query_len = tl.load(query_start + sequence + 1) - first_token
        tile_rows = tl.minimum(query_len * GROUP - first_row, ROWS)
        first_position = tl.load(context_lens + sequence) - query_len
        positions = first_position + (first_row + rows) // GROUP
        query_offsets = _offsets(first_token, first_row + rows, kv_head, query_token_stride, query_head_stride, GROUP)
        in_query = (rows < tile_rows)[:, None] & in_head
        q = tl.load(query + query_offsets[:, None] + dims[None, :], mask=in_query, other=0.0).to(COMPUTE)

        # The keys that any of the rows sees: positions rise with the row.
        first_key = first_section * SECTION
        end_key = first_position + (first_row + tile_rows - 1) // GROUP + 1
        end_key = tl.minimum(end_key, last_section * SECTION)
        if WINDOWED:
            first_key = tl.maximum(first_key, first_position + first_row // GROUP - window + 1)
        table = block_tables + tl.cast(sequence, tl.int64) * table_stride
        key_head = keys + tl.cast(kv_head, tl.int64) * key_head_stride
        value_head = values + tl.cast(kv_head, tl.int64) * value_head_stride

        high = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
        # Nested, not one loop over all tiles with a branch at the end of a section: Hopper's asynchronous products
        # would wait for each other.
        for section in range(first_key // SECTION, tl.cdiv(end_key, SECTION)):
            section_high = tl.full([ROWS], float("-inf"), tl.float32)
            section_total = tl.zeros([ROWS], tl.float32)
            section_acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
            first_tile = tl.maximum(section * SECTION, first_key) // KEYS
            last_tile = tl.cdiv(tl.minimum((section + 1) * SECTION, end_key), KEYS)
            for tile in range(first_tile, last_tile):
                key = tile * KEYS + slots
                # Neither slots that no row sees nor their entries of the table are read: they may hold anything.
                seen = (key >= first_key) & (key < end_key)
                block = tl.load(table + key // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
                slot = key % BLOCK_SIZE
                in_keys = seen[:, None] & in_head
                key_offsets = (block * key_block_stride + slot * HEAD_DIM)[:, None] + dims[None, :]
                k = _widen(tl.load(key_head + key_offsets, mask=in_keys, other=0.0), COMPUTE)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
                if QUANTIZED:
                    offsets = block * key_scale_block_stride + kv_head * key_scale_head_stride + slot
                    scores *= tl.load(key_scales + offsets, mask=seen, other=0.0)[None, :]
                visible = key[None, :] <= positions[:, None]
                if WINDOWED:
                    visible &= key[None, :] > positions[:, None] - window
                scores = tl.where(visible, scores, float("-inf"))

                highest = tl.maximum(section_high, tl.max(scores, 1))
                reference = exponent_reference(highest)
                weights = tl.exp2(scores - reference[:, None])
                decay = tl.exp2(section_high - reference)
                section_high = highest
                section_total = section_total * decay + tl.sum(weights, 1)
                if QUANTIZED:
                    offsets = block * value_scale_block_stride + kv_head * value_scale_head_stride + slot
                    weights *= tl.load(value_scales + offsets, mask=seen, other=0.0)[None, :]
                value_offsets = (block * value_block_stride + slot * HEAD_DIM)[:, None] + dims[None, :]
                v = _widen(tl.load(value_head + value_offsets, mask=in_keys, other=0.0), COMPUTE)
                section_acc *= decay[:, None]
                section_acc = tl.dot(weights.to(COMPUTE), v, section_acc, input_precision=PRECISION)

            if place < 0:
                high, total, acc = add_section(high, total, acc, section_high, section_total, section_acc)
            else:
                partial = kv_head * partial_rows + place + section * tile_rows
                stats = partial_stats + partial + rows
                tl.store(stats, section_high, mask=rows < tile_rows)
                tl.store(stats + num_kv_heads * partial_rows, section_total, mask=rows < tile_rows)
                offsets = rows[:, None] * HEAD_DIM + dims[None, :]
                in_partial = (rows < tile_rows)[:, None] & in_head
                tl.store(partial_acc + tl.cast(partial, tl.int64) * HEAD_DIM + offsets, section_acc, mask=in_partial)

        if place < 0:
            # Made anew from what is read anew: kept over the loop, these offsets would cost it registers.
            first_row = tl.load(item + 1)
            offsets = _offsets(first_token, first_row + rows, kv_head, output_token_stride, output_head_stride, GROUP)
            tl.store(
                output + offsets[:, None] + dims[None, :],
                weighted_mean(acc, total).to(output.dtype.element_ty),
                mask=(first_row + rows < query_len * GROUP)[:, None] & in_head,
            )


@triton.jit
def _offsets(first_token, rows, kv_head, token_stride, head_stride, GROUP: tl.constexpr):
    """Where rows of a sequence and KV head begin in [num_tokens, num_heads, head_dim]."""
    return (first_token + rows // GROUP).to(tl.int64) * token_stride + (kv_head * GROUP + rows % GROUP) * head_stride


@triton.jit
def _widen(x, COMPUTE: tl.constexpr):
    """The cache's elements in the type that they are multiplied in, exactly.

    Bits are moved where conversions would take longer than the elements take to arrive (int8: they run at an eighth of
    the rate of other instructions) or do not exist (FP8 before capability 8.9: it comes as uint8).
    """
    if x.dtype == tl.int8:
        # 0x6480 is 1152 in float16, where the last bit counts 1.
        x = (x.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0
    elif x.dtype == tl.uint8:
        # e4m3's bits are float16's, with an exponent of one bit less: 256 is the difference of their biases.
        bits = x.to(tl.uint16)
        x = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return x.to(COMPUTE)
