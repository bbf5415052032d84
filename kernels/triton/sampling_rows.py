"""What all of sampling's kernels read: the rows' parameters, and logits as weights.

A token weighs exp((logit - the row's highest) / temperature), a float32 in [0, 1]; the likeliest weighs 1. Weights are
compared by their bits: floats that are not negative are ordered as those are. They are added as integers, in units of
2^-44: such a sum is exact and the same in any order, so it does not matter how a vocabulary is cut into chunks, and a
cumulative sum over 150,000 tokens loses nothing. (A weight below 2^-44 counts for nothing. It would be drawn once in
10^13 tokens.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..sampling_batch import SAMPLING_ROW

__all__ = [
    "MAX_VOCAB_SIZE",
    "draws",
    "filters",
    "load_logits",
    "mass_of",
    "weigh",
]

#: The sum of as many weights fits 63 bits.
MAX_VOCAB_SIZE = 1 << 19


def _word(name: str) -> tl.constexpr:
    """Where a field lies in a row, in words of 32 bits: kernels see rows as int32, `words`, and as float32, `reals`."""
    return tl.constexpr(SAMPLING_ROW.fields[name][1] // 4)  # type: ignore[index]


SEED = _word("seed")
TEMPERATURE = _word("temperature")
TOP_P = _word("top_p")
MIN_P = _word("min_p")
REPETITION_PENALTY = _word("repetition_penalty")
FREQUENCY_PENALTY = _word("frequency_penalty")
PRESENCE_PENALTY = _word("presence_penalty")
TOP_K = _word("top_k")
NUM_LOGPROBS = _word("num_logprobs")
SEQUENCE_INDEX = _word("sequence_index")
MIN_TOKENS = _word("min_tokens")
NUM_PROMPT_TOKENS = _word("num_prompt_tokens")
NUM_TOKENS = _word("num_tokens")
TOKEN_ROW = _word("token_row")
MASK_ROW = _word("mask_row")
ROW_WORDS = tl.constexpr(SAMPLING_ROW.itemsize // 4)
_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
_UNITS = tl.constexpr(float(1 << 44))


@triton.jit
def draws(reals, highest):
    """Whether a row's token is drawn; +inf is certain, and without a finite maximum there is no distribution."""
    return (tl.load(reals + TEMPERATURE) > 0) & (highest > float("-inf")) & (highest < float("inf"))


@triton.jit
def filters(words, reals, vocab_size):
    """Whether a row's top_k, top_p or min_p leaves anything out."""
    top_k = tl.load(words + TOP_K)
    limited = (top_k > 0) & (top_k < vocab_size)
    return limited | (tl.load(reals + TOP_P) < 1) | (tl.load(reals + MIN_P) > 0)


@triton.jit
def load_logits(logits, tokens, vocab_size):
    """Float32, -inf for nan and beyond the vocabulary; `logits` is where the row begins."""
    x = tl.load(logits + tokens, mask=tokens < vocab_size, other=float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def weigh(x, highest, temperature):
    """The weights of logits, float32."""
    # 0 * inf would be nan: where the quotient overflows, all but the maximum weigh 0 in any case.
    inverse = tl.minimum(tl.div_rn(1.0, temperature), _LARGEST_FLOAT)
    return tl.exp((x - highest) * inverse)


@triton.jit
def mass_of(weights):
    """Weights in units, int64."""
    return (weights * _UNITS).to(tl.int64)
