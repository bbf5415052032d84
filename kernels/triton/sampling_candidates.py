"""The few tokens among which filters cut and draws choose: found by chunks of the vocabulary, in order of token id.

Sixteen levels, thresholds from a half downwards, tell about where a filter cuts: each chunk counts and sums its tokens
at or above each (`measure`). The tokens at or above the level that must contain the cut are gathered (`gather`),
usually some hundred of 150,000; `sampling_choice` looks at those alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sampling_rows import (
    MIN_P,
    ROW_WORDS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    draws,
    filters,
    load_logits,
    mass_of,
    weigh,
)

__all__ = ["LEVELS", "gather", "highest_of", "measure", "nucleus_of"]

LEVELS = tl.constexpr(16)
_LAST = tl.constexpr(15)


@triton.jit
def _level_bits(level):
    """The weight of a level, as bits: 2^-1, 2^-2, 2^-3, 2^-4, 2^-6, …, 2^-27, and 0, which all tokens reach."""
    exponent = level + 1 + ((level * level) >> 4)
    return tl.where(level < _LAST, (127 - exponent) << 23, 0)


@triton.jit
def highest_of(maxima, row, num_chunks, CHUNKS: tl.constexpr):
    """A row's highest logit."""
    chunks = tl.arange(0, CHUNKS)
    return tl.max(tl.load(maxima + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf")), axis=0)


@triton.jit
def nucleus_of(top_p, mass):
    """The mass that the most likely tokens must reach, int64."""
    return (top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)


@triton.jit
def measure(
    logits, stride, vocab_size, words, reals, maxima, counts, masses, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """How many tokens of each chunk reach each level, and their mass; grid [n, chunks].

    Rows that no filter cuts get the last level alone, and greedy rows nothing.
    Limit: the logits, read once: 4 bytes × n × vocab over the bandwidth of the cache, where they fit, or the memory.

    Args:
        logits: float32 [n, vocab], rows `stride` apart; edited.
        stride: see there.
        vocab_size: see there.
        words: int32 [n, ROW_WORDS], the parameters.
        reals: the same as float32.
        maxima: float32 [n, chunks].
        counts: int32 [n, chunks, LEVELS], out.
        masses: int64 [n, chunks, LEVELS], out.
        CHUNK: tokens of a chunk.
        CHUNKS: at least the number of chunks, a power of 2.
    """
    row, chunk, num_chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    highest = highest_of(maxima, row, num_chunks, CHUNKS)
    words += row * ROW_WORDS
    reals += row * ROW_WORDS
    if draws(reals, highest):
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        x = load_logits(logits + row.to(tl.int64) * stride, tokens, vocab_size)
        weights = weigh(x, highest, tl.load(reals + TEMPERATURE))
        mass = mass_of(weights)
        # Below every level beyond the vocabulary.
        bits = tl.where(tokens < vocab_size, weights.to(tl.int32, bitcast=True), -1)
        largest = tl.max(bits, axis=0)
        at = (row * num_chunks + chunk) * LEVELS
        first = tl.where(filters(words, reals, vocab_size), 0, _LAST)
        for level in range(first, LEVELS):
            bound = _level_bits(level)
            if largest >= bound:
                reaches = bits >= bound
                tl.store(counts + at + level, tl.sum(reaches.to(tl.int32), axis=0))
                tl.store(masses + at + level, tl.sum(tl.where(reaches, mass, 0), axis=0))
            else:
                tl.store(counts + at + level, 0)
                tl.store(masses + at + level, tl.zeros((), tl.int64))


@triton.jit
def _level_of_the_cut(words, reals, row, vocab_size, counts, masses, num_chunks, CHUNKS: tl.constexpr):
    """The highest level above which a row's filters need to know nothing but sums, int32."""
    levels = tl.arange(0, LEVELS)
    chunks = tl.arange(0, CHUNKS)[:, None]
    at = (row * num_chunks + chunks) * LEVELS + levels[None, :]
    known = (chunks < num_chunks) & (levels[None, :] < LEVELS)
    top_k, min_p = tl.load(words + TOP_K), tl.load(reals + MIN_P)
    level = tl.max(levels, axis=0)
    limited = (top_k > 0) & (top_k < vocab_size)
    if limited:
        total = tl.sum(tl.load(counts + at, mask=known, other=0), axis=0)
        level = tl.min(tl.where(total >= top_k, levels, _LAST), axis=0)
    if min_p > 0:
        reached = _level_bits(levels) <= min_p.to(tl.int32, bitcast=True)
        level = tl.minimum(level, tl.min(tl.where(reached, levels, _LAST), axis=0))
    # Within top_k and min_p, top_p cuts above them or there. Alone, it is a share of everything.
    if (limited | (min_p > 0)) == 0:
        mass = tl.sum(tl.load(masses + at, mask=known, other=0), axis=0)
        target = nucleus_of(tl.load(reals + TOP_P), tl.max(mass, axis=0))
        level = tl.min(tl.where(mass >= target, levels, _LAST), axis=0)
    return level


@triton.jit
def gather(
    logits,
    stride,
    vocab_size,
    words,
    reals,
    maxima,
    counts,
    masses,
    weights,
    token_ids,
    numbers,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The tokens that reach the level of the cut, in order of their ids; grid [n, chunks].

    Limit: the chunks that have any are read once more. That is a small part of the vocabulary, so it is the latency of
    a launch and of reading the chunks' counts.

    Args:
        logits: as for `measure`, and what follows up to `masses` too.
        stride: see there.
        vocab_size: see there.
        words: see there.
        reals: see there.
        maxima: see there.
        counts: see there.
        masses: see there.
        weights: float32 [n, CANDIDATES], out.
        token_ids: int32 [n, CANDIDATES], out.
        numbers: int32 [n], out: of the candidates; −1: they are more than CANDIDATES, and none was stored.
        CHUNK: tokens of a chunk.
        CHUNKS: at least the number of chunks, a power of 2.
        CANDIDATES: room for as many.
    """
    row, chunk, num_chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    highest = highest_of(maxima, row, num_chunks, CHUNKS)
    words += row * ROW_WORDS
    reals += row * ROW_WORDS
    if draws(reals, highest) & filters(words, reals, vocab_size):
        level = _level_of_the_cut(words, reals, row, vocab_size, counts, masses, num_chunks, CHUNKS)
        chunks = tl.arange(0, CHUNKS)
        at = counts + (row * num_chunks + chunks) * LEVELS + level
        found = tl.load(at, mask=chunks < num_chunks, other=0)
        number = tl.sum(found, axis=0)
        if chunk == 0:
            tl.store(numbers + row, tl.where(number <= CANDIDATES, number, -1))
        own = tl.sum(tl.where(chunks == chunk, found, 0), axis=0)
        if (number <= CANDIDATES) & (own > 0):
            tokens = chunk * CHUNK + tl.arange(0, CHUNK)
            x = load_logits(logits + row.to(tl.int64) * stride, tokens, vocab_size)
            weight = weigh(x, highest, tl.load(reals + TEMPERATURE))
            reaches = (tokens < vocab_size) & (weight.to(tl.int32, bitcast=True) >= _level_bits(level))
            before = tl.sum(tl.where(chunks < chunk, found, 0), axis=0)
            place = row * CANDIDATES + before + tl.cumsum(reaches.to(tl.int32), axis=0) - 1
            tl.store(weights + place, weight, mask=reaches)
            tl.store(token_ids + place, tokens, mask=reaches)
