"""Philox4x32-10: counter-based random numbers.

Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A number is a pure
function of key and counter, so a token's randomness does not depend on what was drawn before it, on the batch,
or on whether the sequence was preempted, replayed or moved to another executor.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)


def philox4x32(counters: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds of Philox.

    Args:
        counters: [4, n], 32-bit words in uint64.
        keys: [2, n], 32-bit words in uint64.

    Returns:
        [4, n] random 32-bit words in uint64.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for i in range(_ROUNDS):
        if i:
            k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
        # 32 × 32 bits fit 64: nothing overflows.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ k1,
            product0 & _LOW,
        )
    return np.stack((c0, c1, c2, c3))


def uniform(seeds: ArrayLike, positions: ArrayLike, sequence_indices: ArrayLike) -> NDArray[np.float64]:
    """The uniform numbers in [0, 1) for tokens: float64 [n], multiples of 2^-53.

    Args:
        seeds: [n] of the requests, 64 bits: the key.
        positions: [n] of the tokens in their outputs, from 0.
        sequence_indices: [n], which of a request's continuations; with the position, the counter.
    """
    seed = np.asarray(seeds, dtype=np.uint64)
    position = np.asarray(positions, dtype=np.uint64)
    counters = np.zeros((4, len(seed)), dtype=np.uint64)
    counters[0] = position & _LOW
    counters[1] = np.asarray(sequence_indices, dtype=np.uint64)
    words = philox4x32(counters, np.stack((seed & _LOW, seed >> _32)))
    bits = ((words[0] << _32) | words[1]) >> np.uint64(11)
    unit: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return unit
