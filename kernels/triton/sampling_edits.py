"""Edits of logits before a choice: what each row's lists, mask and history change, in `sampling`'s order."""

from __future__ import annotations

import triton
import triton.language as tl

from .sampling_rows import (
    FREQUENCY_PENALTY,
    MASK_ROW,
    MIN_TOKENS,
    NUM_PROMPT_TOKENS,
    NUM_TOKENS,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    ROW_WORDS,
    TOKEN_ROW,
    load_logits,
)

__all__ = ["add_bias", "ban_tokens", "count_tokens", "edit_and_find_maxima"]

# In the counts of a history: the token occurred in the prompt. The bits below count its occurrences in the output.
_IN_PROMPT = tl.constexpr(1 << 30)


@triton.jit
def add_bias(logits, stride, starts, ids, values, BLOCK: tl.constexpr):
    """Adds each row's logit bias; one program for a row. Limit: the latency of scattered reads and writes.

    Args:
        logits: float32 [n, vocab], rows `stride` apart.
        stride: see there.
        starts: int32 [n + 1], of the rows' entries in `ids`, int32 and distinct within a row, and `values`.
        ids: see there.
        values: int32, the bits of float32.
        BLOCK: entries at once.
    """
    row = tl.program_id(0)
    end = tl.load(starts + row + 1)
    for first in range(tl.load(starts + row), end, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        given = entries < end
        at = logits + row.to(tl.int64) * stride + tl.load(ids + entries, mask=given, other=0)
        value = tl.load(values + entries, mask=given, other=0).to(tl.float32, bitcast=True)
        tl.store(at, tl.load(at, mask=given, other=0.0) + value, mask=given)


@triton.jit
def ban_tokens(logits, stride, words, starts, ids, BLOCK: tl.constexpr):
    """Sets the banned tokens of rows below min_tokens to -inf; one program for a row. Arguments as for `add_bias`."""
    row = tl.program_id(0)
    words += row * ROW_WORDS
    position = tl.load(words + NUM_TOKENS) - tl.load(words + NUM_PROMPT_TOKENS)
    if position < tl.load(words + MIN_TOKENS):
        end = tl.load(starts + row + 1)
        for first in range(tl.load(starts + row), end, BLOCK):
            entries = first + tl.arange(0, BLOCK)
            given = entries < end
            at = logits + row.to(tl.int64) * stride + tl.load(ids + entries, mask=given, other=0)
            tl.store(at, float("-inf"), mask=given)


@triton.jit(do_not_specialize=["vocab_size"])
def count_tokens(histories, token_ids, counts, vocab_size, BLOCK: tl.constexpr):
    """Counts the tokens of histories; grid [p, programs that share a history]. Limit: one atomic operation a token.

    Args:
        histories: int32 [p, 4]; see device_sampling.Columns.
        token_ids: int32, the histories; ids beyond the vocabulary are passed over.
        counts: int32 [p, vocab_size], 0 before; then the occurrences in the output, and _IN_PROMPT.
        vocab_size: see there.
        BLOCK: tokens at once.
    """
    history, part = tl.program_id(0), tl.program_id(1)
    output, end = tl.load(histories + history * 4 + 1), tl.load(histories + history * 4 + 2)
    counts += history.to(tl.int64) * vocab_size
    begin = tl.load(histories + history * 4)
    for first in range(begin + part * BLOCK, end, tl.num_programs(1) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        token = tl.load(token_ids + at, mask=at < end, other=-1)
        known = (token >= 0) & (token < vocab_size)
        tl.atomic_or(counts + token, _IN_PROMPT, mask=known & (at < output))
        tl.atomic_add(counts + token, 1, mask=known & (at >= output))


@triton.jit
def _penalise(x, seen, reals):
    count = (seen & (_IN_PROMPT - 1)).to(tl.float32)
    factor = tl.load(reals + REPETITION_PENALTY)
    repeated = tl.where(x > 0, tl.div_rn(x, tl.zeros_like(x) + factor), x * factor)
    presence = tl.where(count > 0, tl.load(reals + PRESENCE_PENALTY), 0.0)
    return tl.where(seen != 0, repeated - (tl.load(reals + FREQUENCY_PENALTY) * count + presence), x)


@triton.jit(do_not_specialize=["mask_words"])
def edit_and_find_maxima(
    logits, stride, vocab_size, words, reals, masks, mask_words, counts, maxima, positions, CHUNK: tl.constexpr
):
    """Masks and penalties, then each chunk's highest logit; grid [n, chunks].

    Limit: the logits, read once and written once by rows that have a mask or penalties: 4 bytes × n × vocab over
    the memory's bandwidth, or the cache's, where the layer before has left them there.

    Args:
        logits: float32 [n, vocab], rows `stride` apart.
        stride: see there.
        vocab_size: see there.
        words: int32 [n, ROW_WORDS], the parameters; `token_row` says which row of `counts` is a row's.
        reals: the same as float32.
        masks: int32 [any, mask_words].
        mask_words: see there.
        counts: int32 [any, vocab], from `count_tokens`.
        maxima: float32 [n, chunks], out.
        positions: int32 [n, chunks], out: of the first token with that logit.
        CHUNK: tokens of a chunk.
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = tokens < vocab_size
    logits += row.to(tl.int64) * stride
    x = load_logits(logits, tokens, vocab_size)
    mask_row, history = tl.load(words + row * ROW_WORDS + MASK_ROW), tl.load(words + row * ROW_WORDS + TOKEN_ROW)
    if mask_row >= 0:
        bits = tl.load(masks + mask_row.to(tl.int64) * mask_words + tokens // 32, mask=inside, other=0)
        x = tl.where(((bits >> (tokens % 32)) & 1) != 0, x, float("-inf"))
    if history >= 0:
        seen = tl.load(counts + history.to(tl.int64) * vocab_size + tokens, mask=inside, other=0)
        x = _penalise(x, seen, reals + row * ROW_WORDS)
        # 0 × inf, of a factor that is 0
        x = tl.where(x == x, x, float("-inf"))
    if (mask_row >= 0) | (history >= 0):
        tl.store(logits + tokens, x, mask=inside)
    highest = tl.max(x, axis=0)
    at = row * tl.num_programs(1) + chunk
    tl.store(maxima + at, highest)
    tl.store(positions + at, tl.min(tl.where(x == highest, tokens, 0x7FFFFFFF), axis=0))
