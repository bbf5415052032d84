"""Philox4x32-10 as in ../philox.py, bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["random_bits"]

_LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def random_bits(seed_low, seed_high, position, sequence_index):
    """uint64: a multiple of 2^11 whose value times 2^-64 is `philox.uniform` of the same arguments.

    Ten rounds, some 60 integer operations: its limit is the latency of a chain of 20 multiplications.

    Args:
        seed_low: the lower 32 bits of the seed, in int32, a scalar or a block; with `seed_high` the key.
        seed_high: its upper 32 bits, in int32.
        position: of the token in its output, int32.
        sequence_index: which of a request's continuations, in int32.
    """
    # Words of 32 bits in uint64: their products fit.
    key0, key1 = seed_low.to(tl.uint64) & _LOW, seed_high.to(tl.uint64) & _LOW
    word0, word1 = position.to(tl.uint64) & _LOW, sequence_index.to(tl.uint64) & _LOW
    word2, word3 = word0 * 0, word0 * 0
    for _ in tl.static_range(10):
        product0, product1 = word0 * 0xD2511F53, word2 * 0xCD9E8D57
        word0 = (product1 >> 32) ^ word1 ^ key0
        word2 = (product0 >> 32) ^ word3 ^ key1
        word1, word3 = product1 & _LOW, product0 & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    # 53 bits, as many as a double holds.
    return (((word0 << 32) | word1) >> 11) << 11
