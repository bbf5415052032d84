"""Sums over sections of the context, and how they are added: what walking and merging have in common."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_section", "exponent_reference", "merge", "weighted_mean"]

# Sections whose partial results are read at once: their loads do not wait for each other.
UNROLL = tl.constexpr(8)


@triton.jit
def add_section(high, total, acc, section_high, section_total, section_acc):
    """The online softmax's state of all sections before, and one more: exactly the former if a row sees none of it.

    `high` is the highest score (log2) of a row, `total` the sum of its weights relative to that, `acc` [rows, head_dim]
    the weighted sum of values.
    """
    highest = tl.maximum(high, section_high)
    reference = exponent_reference(highest)
    old, new = tl.exp2(high - reference), tl.exp2(section_high - reference)
    return highest, total * old + section_total * new, acc * old[:, None] + section_acc * new[:, None]


@triton.jit
def exponent_reference(highest):
    """What exponents are relative to: 0 for a row that has seen no key yet, since -inf less -inf is nan."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def weighted_mean(acc, total):
    """[rows, head_dim]: the attention of rows that have seen all their keys. Padding has seen none."""
    return acc / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["partial_rows"])  # as in attend
def merge(
    output, partial_acc, partial_stats, query_start, context_lens, merges, counts,
    output_token_stride, output_head_stride, num_kv_heads, partial_rows, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr, SECTION: tl.constexpr, WINDOWED: tl.constexpr, MERGE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds up the partial results of the tiles that were split, in order of position, and writes their rows.

    partial_acc is float32 [num_kv_heads, partial_rows, HEAD_DIM], partial_stats float32 [2, num_kv_heads,
    partial_rows] (high and total).
    """
    dims = tl.arange(0, BLOCK_DIM)
    num_merges = tl.load(counts + 1) * num_kv_heads
    for index in range(tl.program_id(0), num_merges, tl.num_programs(0)):
        kv_head = index % num_kv_heads
        columns = merges + index // num_kv_heads * MERGE_COLUMNS
        sequence = tl.load(columns)
        first_row = tl.load(columns + 1)
        num_sections = tl.load(columns + 2)
        place = tl.load(columns + 3)
        stride = tl.load(columns + 4)
        first_token = tl.load(query_start + sequence)
        query_len = tl.load(query_start + sequence + 1) - first_token
        rows = first_row + tl.arange(0, ROWS)
        inside = rows < query_len * GROUP
        end_section = tl.where(inside, num_sections, 0)

        first_section = 0
        if WINDOWED:  # what lies before the window of the first row was not computed
            position = tl.load(context_lens + sequence) - query_len + first_row // GROUP
            first_section = tl.maximum(position - window + 1, 0) // SECTION

        high = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
        for start in range(first_section, num_sections, UNROLL):
            for ahead in tl.static_range(UNROLL):
                section = start + ahead
                there = section < end_section
                partial = kv_head * partial_rows + place + section * stride + tl.arange(0, ROWS)
                section_high = tl.load(partial_stats + partial, mask=there, other=float("-inf"))
                section_total = tl.load(partial_stats + num_kv_heads * partial_rows + partial, mask=there, other=0.0)
                section_acc = tl.load(
                    partial_acc + partial.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :],
                    mask=there[:, None] & (dims < HEAD_DIM)[None, :],
                    other=0.0,
                )
                high, total, acc = add_section(high, total, acc, section_high, section_total, section_acc)

        offsets = (first_token + rows // GROUP).to(tl.int64) * output_token_stride
        offsets += (kv_head * GROUP + rows % GROUP) * output_head_stride
        tl.store(
            output + offsets[:, None] + dims[None, :],
            weighted_mean(acc, total).to(output.dtype.element_ty),
            mask=inside[:, None] & (dims < HEAD_DIM)[None, :],
        )
