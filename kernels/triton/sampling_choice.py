"""A token for each row: the likeliest, or a draw after the filters. `sampling_rows` says what weights and masses are."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import random_bits
from .sampling_candidates import LEVELS, highest_of, nucleus_of
from .sampling_rows import (
    MIN_P,
    NUM_PROMPT_TOKENS,
    NUM_TOKENS,
    ROW_WORDS,
    SEED,
    SEQUENCE_INDEX,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    draws,
    filters,
    load_logits,
    mass_of,
    weigh,
)

__all__ = ["choose"]

# The bits of 1.0, the largest weight.
_ONE = tl.constexpr(0x3F800000)


@triton.jit
def _point(words, total):
    """Where in the cumulative sum the draw falls: the uniform number times the total, rounded down, int64.

    It is below the total, since the number is below 1: there is always a token there.
    """
    position = tl.load(words + NUM_TOKENS) - tl.load(words + NUM_PROMPT_TOKENS)
    seed_low, seed_high = tl.load(words + SEED), tl.load(words + SEED + 1)
    number = random_bits(seed_low, seed_high, position, tl.load(words + SEQUENCE_INDEX))
    return tl.umulhi(number, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def _boundary(bits, values, target):
    """The largest weight, as bits, such that the values of tokens at or above it sum up to the target; 0 if all do not.

    By bisection, since positive floats are ordered as their bits are: 30 sums of what lies in registers.

    Args:
        bits: int32 [CANDIDATES], weights; −1 where there is none.
        values: int64 [CANDIDATES], what is added up.
        target: int64.
    """
    low, high = 0, _ONE + 1
    while high - low > 1:
        middle = (low + high) >> 1
        reached = tl.sum(tl.where(bits >= middle, values, 0), axis=0) >= target
        low, high = tl.where(reached, middle, low), tl.where(reached, high, middle)
    return low


@triton.jit
def _draw_candidate(words, reals, vocab_size, weights, token_ids, number, total, CANDIDATES: tl.constexpr):
    """Cuts and draws among the gathered tokens of a row."""
    places = tl.arange(0, CANDIDATES)
    there = places < number
    weight = tl.load(weights + places, mask=there, other=0.0)
    bits = tl.where(there, weight.to(tl.int32, bitcast=True), -1)
    mass = mass_of(weight)
    top_k, top_p = tl.load(words + TOP_K), tl.load(reals + TOP_P)
    bound = tl.load(words + MIN_P)  # its bits, as those of a weight
    if (top_k > 0) & (top_k < vocab_size):
        bound = tl.maximum(bound, _boundary(bits, there.to(tl.int64), top_k.to(tl.int64)))
    if top_p < 1:
        kept = tl.sum(tl.where(bits >= bound, mass, 0), axis=0)
        target = nucleus_of(top_p, tl.where(bound > 0, kept, total))
        bound = tl.maximum(bound, _boundary(bits, mass, target))
    mass = tl.where(bits >= bound, mass, 0)
    point = _point(words, tl.sum(mass, axis=0))
    place = tl.sum((tl.cumsum(mass, axis=0) <= point).to(tl.int32), axis=0)
    return tl.load(token_ids + place)


@triton.jit
def _weights_of_chunk(logits, vocab_size, highest, temperature, chunk, CHUNK: tl.constexpr):
    """Float32 [CHUNK]; `logits` is where the row begins."""
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    return weigh(load_logits(logits, tokens, vocab_size), highest, temperature)


@triton.jit
def _sum_above(logits, vocab_size, highest, temperature, bound, num_chunks, COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """Of a whole row's tokens at or above a weight: how many there are, or their mass, int64."""
    sums = tl.zeros((CHUNK,), tl.int64)
    for chunk in range(num_chunks):
        weight = _weights_of_chunk(logits, vocab_size, highest, temperature, chunk, CHUNK)
        reaches = weight.to(tl.int32, bitcast=True) >= bound
        if COUNT:
            sums += reaches.to(tl.int64)
        else:
            sums += tl.where(reaches, mass_of(weight), 0)
    return tl.sum(sums, axis=0)


@triton.jit
def _boundary_of_row(
    logits, vocab_size, highest, temperature, target, num_chunks, COUNT: tl.constexpr, CHUNK: tl.constexpr
):
    """As `_boundary`, reading the whole row for each sum."""
    low, high = 0, _ONE + 1
    while high - low > 1:
        middle = (low + high) >> 1
        reached = _sum_above(logits, vocab_size, highest, temperature, middle, num_chunks, COUNT, CHUNK) >= target
        low, high = tl.where(reached, middle, low), tl.where(reached, high, middle)
    return low


@triton.jit
def _cut_row(words, reals, logits, vocab_size, highest, total, num_chunks, CHUNK: tl.constexpr):
    """The weight at which the filters cut, as bits, where candidates were too many to be gathered."""
    temperature = tl.load(reals + TEMPERATURE)
    top_k, top_p = tl.load(words + TOP_K), tl.load(reals + TOP_P)
    bound = tl.load(words + MIN_P)
    if (top_k > 0) & (top_k < vocab_size):
        target = top_k.to(tl.int64)
        least = _boundary_of_row(logits, vocab_size, highest, temperature, target, num_chunks, True, CHUNK)
        bound = tl.maximum(bound, least)
    if top_p < 1:
        if bound > 0:
            total = _sum_above(logits, vocab_size, highest, temperature, bound, num_chunks, False, CHUNK)
        target = nucleus_of(top_p, total)
        least = _boundary_of_row(logits, vocab_size, highest, temperature, target, num_chunks, False, CHUNK)
        bound = tl.maximum(bound, least)
    return bound


@triton.jit
def _find_in_chunk(logits, vocab_size, highest, temperature, bound, chunk, point, CHUNK: tl.constexpr):
    """The first token of a chunk at which the cumulative sum of what reaches the bound exceeds the point."""
    weight = _weights_of_chunk(logits, vocab_size, highest, temperature, chunk, CHUNK)
    mass = tl.where(weight.to(tl.int32, bitcast=True) >= bound, mass_of(weight), 0)
    return chunk * CHUNK + tl.sum((tl.cumsum(mass, axis=0) <= point).to(tl.int32), axis=0)


@triton.jit
def _draw_above(words, reals, logits, vocab_size, highest, bound, num_chunks, CHUNK: tl.constexpr):
    """Draws among a whole row's tokens at or above a weight: two more passes over the row."""
    temperature = tl.load(reals + TEMPERATURE)
    point = _point(words, _sum_above(logits, vocab_size, highest, temperature, bound, num_chunks, False, CHUNK))
    found, rest = 0, point
    for chunk in range(num_chunks):
        weight = _weights_of_chunk(logits, vocab_size, highest, temperature, chunk, CHUNK)
        mass = tl.sum(tl.where(weight.to(tl.int32, bitcast=True) >= bound, mass_of(weight), 0), axis=0)
        # Chunks that end at or before the point are passed over.
        passed = (found == chunk) & (rest >= mass)
        found, rest = tl.where(passed, chunk + 1, found), tl.where(passed, rest - mass, rest)
    return _find_in_chunk(logits, vocab_size, highest, temperature, bound, found, rest, CHUNK)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def choose(
    logits,
    stride,
    vocab_size,
    words,
    reals,
    maxima,
    positions,
    masses,
    weights,
    token_ids,
    numbers,
    result,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """A token for each row; one program for a row.

    Limit: latency. A greedy row reads its chunks' maxima, a drawn one their masses and one chunk or the candidates.
    Only a row whose cut leaves more than CANDIDATES tokens is read as a whole, some 30 times for each of top_k and
    top_p, by one multiprocessor: 4 bytes × vocab × 30 over what that reads from the cache.

    Args:
        logits: float32 [n, vocab], rows `stride` apart; edited.
        stride: see there.
        vocab_size: see there.
        words: int32 [n, ROW_WORDS], the parameters.
        reals: the same as float32.
        maxima: float32 [n, chunks]; greedy rows need this and `positions` alone.
        positions: int32 [n, chunks], of the first token with that logit.
        masses: int64 [n, chunks, LEVELS].
        weights: float32 [n, CANDIDATES], of the candidates, in order of their ids.
        token_ids: int32 [n, CANDIDATES], of the candidates.
        numbers: int32 [n], of the candidates; −1: too many, and not gathered.
        result: int32, out: n tokens; then n times 1 where every logit was -inf or nan, else 0.
        num_rows: n.
        num_chunks: of the vocabulary.
        CHUNK: tokens of a chunk.
        CHUNKS: at least num_chunks, a power of 2.
        CANDIDATES: room for as many.
    """
    row = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS)
    known = chunks < num_chunks
    highest = highest_of(maxima, row, num_chunks, CHUNKS)
    words += row * ROW_WORDS
    reals += row * ROW_WORDS
    if draws(reals, highest):
        logits += row.to(tl.int64) * stride
        at = masses + (row * num_chunks + chunks) * LEVELS + (LEVELS - 1)
        mass = tl.load(at, mask=known, other=0)
        total = tl.sum(mass, axis=0)
        if filters(words, reals, vocab_size):
            number = tl.load(numbers + row)
            if number >= 0:
                weights += row * CANDIDATES
                token_ids += row * CANDIDATES
                token = _draw_candidate(words, reals, vocab_size, weights, token_ids, number, total, CANDIDATES)
            else:
                bound = _cut_row(words, reals, logits, vocab_size, highest, total, num_chunks, CHUNK)
                token = _draw_above(words, reals, logits, vocab_size, highest, bound, num_chunks, CHUNK)
        else:
            point = _point(words, total)
            chunk = tl.sum((tl.cumsum(mass, axis=0) <= point).to(tl.int32), axis=0)
            rest = point - tl.sum(tl.where(chunks < chunk, mass, 0), axis=0)
            temperature = tl.load(reals + TEMPERATURE)
            token = _find_in_chunk(logits, vocab_size, highest, temperature, 0, chunk, rest, CHUNK)
    else:
        of_chunk = tl.load(maxima + row * num_chunks + chunks, mask=known, other=float("-inf"))
        position = tl.load(positions + row * num_chunks + chunks, mask=known, other=0x7FFFFFFF)
        token = tl.min(tl.where(of_chunk == highest, position, 0x7FFFFFFF), axis=0)
    tl.store(result + row, token)
    tl.store(result + num_rows + row, (highest == float("-inf")).to(tl.int32))
