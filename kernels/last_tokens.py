"""Token ids that only the device knows yet."""

import torch
from torch import Tensor

from .backend import implementation_for

__all__ = ["take_last_tokens"]


def take_last_tokens(token_ids: Tensor, last_tokens: Tensor) -> None:
    """Replace each negative id ~s = -1 - s by last_tokens[s], in place; other ids stay.

    Its limit is the launch: a few bytes for each token.

    Args:
        token_ids: int32 [n], contiguous. Written in place.
        last_tokens: int32 [slots], contiguous.

    Raises:
        ValueError: wrong dtype, shape or layout. A slot outside the table is not looked for: that would wait.
    """
    for name, ids in (("token_ids", token_ids), ("last_tokens", last_tokens)):
        if ids.dtype != torch.int32 or ids.dim() != 1 or not ids.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 [n], not {ids.dtype} {list(ids.shape)}")
    if token_ids.shape[0] == 0:
        return
    if implementation_for(token_ids.device) == "triton":
        from .triton import last_tokens as triton_last_tokens

        triton_last_tokens.take_last_tokens(token_ids, last_tokens)
        return
    slots = (~token_ids).clamp(min=0)
    token_ids.copy_(torch.where(token_ids < 0, last_tokens[slots], token_ids))
