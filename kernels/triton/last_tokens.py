"""Token ids that only the device knows yet."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["take_last_tokens"]

_BLOCK = 256


def take_last_tokens(token_ids: Tensor, last_tokens: Tensor) -> None:
    """As `last_tokens.take_last_tokens`, unchecked."""
    count = token_ids.shape[0]
    launch(_take, (triton.cdiv(count, _BLOCK),), token_ids, last_tokens, count, num_warps=4, BLOCK=_BLOCK)


@triton.jit
def _take(token_ids, last_tokens, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(token_ids + index, mask=index < count, other=0)
    unknown = ids < 0
    # ~id; other lanes read nothing.
    taken = tl.load(last_tokens + (-1 - ids), mask=unknown, other=0)
    tl.store(token_ids + index, taken, mask=unknown)
