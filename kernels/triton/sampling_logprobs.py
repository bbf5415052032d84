"""Logprobs of the tokens that were sampled, and of the likeliest, from logits before any edit."""

from __future__ import annotations

import triton
import triton.language as tl

from .sampling_rows import (
    NUM_LOGPROBS,
    ROW_WORDS,
    load_logits,
)

__all__ = ["report", "summarize_chunks"]

# Below the rank of every token.
_NOTHING = tl.constexpr(-(1 << 63))


@triton.jit
def _ranks(x, tokens):
    """Int64 that are ordered as tokens are: likelier first, of equals the one of the lower id; all are different."""
    bits = x.to(tl.int32, bitcast=True)
    # Negative floats are ordered the other way round; -0 and 0 are equal.
    ordered = tl.where(x == 0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - tokens).to(tl.int64)


@triton.jit
def _token_of(rank):
    return 0x7FFFFFFF - (rank & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _logit_of(rank):
    ordered = (rank >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_top"])
def summarize_chunks(logits, vocab_size, words, reported, maxima, sums, tops, num_top, CHUNK: tl.constexpr):
    """Of each chunk, the highest logit, the sum of exponentials and the likeliest tokens; grid [r, chunks].

    Limit: the logits, read once, for few top tokens; beyond some ten of them, finding each is one maximum over a chunk.

    Args:
        logits: float32 [r, vocab], contiguous.
        vocab_size: see there.
        words: int32 [n, ROW_WORDS], the parameters of all n rows.
        reported: int32 [r], which of the rows these are.
        maxima: float32 [r, chunks], out.
        sums: float32 [r, chunks], out: of exp(logit - maximum).
        tops: int64 [r, chunks, min(num_top, CHUNK)], out: ranks, highest first, as many as the row asked for.
        num_top: the most that a row asked for.
        CHUNK: tokens of a chunk.
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    x = load_logits(logits + row.to(tl.int64) * vocab_size, tokens, vocab_size)
    highest = tl.max(x, axis=0)
    at = row * tl.num_programs(1) + chunk
    tl.store(maxima + at, highest)
    tl.store(sums + at, tl.sum(tl.exp(x - highest), axis=0))
    ranks = tl.where(tokens < vocab_size, _ranks(x, tokens), _NOTHING)
    kept = tl.minimum(num_top, CHUNK)
    wanted = tl.minimum(tl.load(words + tl.load(reported + row) * ROW_WORDS + NUM_LOGPROBS), kept)
    tops += at.to(tl.int64) * kept
    for i in range(wanted):
        best = tl.max(ranks, axis=0)
        tl.store(tops + i, best)
        ranks = tl.where(ranks == best, _NOTHING, ranks)


@triton.jit
def _logprob_bits(x, highest, log_total):
    # From -inf, or where +inf stands beside it, nothing is likely.
    value = (x.to(tl.float64) - highest.to(tl.float64) - log_total).to(tl.float32)
    return tl.where(value == value, value, float("-inf")).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["num_top", "num_rows", "num_chunks"])
def report(
    logits,
    vocab_size,
    words,
    reported,
    maxima,
    sums,
    tops,
    num_top,
    result,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The logprobs of the rows that asked; one program for each of these, which merges its chunks' likeliest tokens.

    Limit: latency; a token of the likeliest is one maximum over the chunks and one dependent read.

    Args:
        logits: as for `summarize_chunks`, and what follows up to `num_top` too.
        vocab_size: see there.
        words: see there.
        reported: see there.
        maxima: see there.
        sums: see there.
        tops: see there.
        num_top: m; see there.
        result: int32; n sampled tokens, n flags, and out: the tokens' logprobs, n × m ids, n × m logprobs.
        num_rows: n.
        num_chunks: of the vocabulary.
        CHUNK: tokens of a chunk.
        CHUNKS: at least num_chunks, a power of 2.
    """
    at = tl.program_id(0)
    row = tl.load(reported + at)
    chunks = tl.arange(0, CHUNKS)
    known = chunks < num_chunks
    of_chunk = tl.load(maxima + at * num_chunks + chunks, mask=known, other=float("-inf"))
    highest = tl.max(of_chunk, axis=0)
    share = tl.load(sums + at * num_chunks + chunks, mask=known, other=0.0).to(tl.float64)
    # A chunk without a number has no sum.
    share *= tl.where(of_chunk > float("-inf"), tl.exp(of_chunk - highest), 0.0).to(tl.float64)
    log_total = tl.log(tl.sum(tl.where(of_chunk > float("-inf"), share, 0.0), axis=0))
    sampled = tl.load(logits + at.to(tl.int64) * vocab_size + tl.load(result + row))
    tl.store(result + 2 * num_rows + row, _logprob_bits(sampled, highest, log_total))

    kept = tl.minimum(num_top, CHUNK)
    ids = result + 3 * num_rows + row * num_top
    logprobs = ids + num_rows * num_top
    lists = tops + (at.to(tl.int64) * num_chunks + chunks) * kept
    taken = tl.zeros((CHUNKS,), tl.int32)
    wanted = tl.minimum(tl.load(words + row * ROW_WORDS + NUM_LOGPROBS), kept)
    heads = tl.load(lists, mask=known & (taken < wanted), other=_NOTHING)
    for i in range(tl.minimum(tl.load(words + row * ROW_WORDS + NUM_LOGPROBS), vocab_size)):
        best = tl.max(heads, axis=0)
        tl.store(ids + i, _token_of(best))
        tl.store(logprobs + i, _logprob_bits(_logit_of(best), highest, log_total))
        first = heads == best
        taken += first.to(tl.int32)
        following = tl.load(lists + taken, mask=first & (taken < wanted), other=_NOTHING)
        heads = tl.where(first, following, heads)
