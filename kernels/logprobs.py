"""Logits → logprobs of given tokens, and of the likeliest: what is reported of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TokenScores", "score_tokens"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Natural logarithms of n rows' distributions.

    Attributes:
        logprobs: float32 [n], of the given tokens.
        top_token_ids: int32 [n, m], likeliest first.
        top_logprobs: float32 [n, m].
    """

    logprobs: NDArray[np.float32]
    top_token_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


def score_tokens(logits: Tensor, token_ids: NDArray[np.int32], num_top: int) -> TokenScores:
    """The logprob of a token for each row. As in `sampling`, a logit that is nan counts as -inf.

    It works within each row (softmax, selection), so a row's result does not depend on the other rows.

    Args:
        logits: float32 [n, vocab].
        token_ids: [n], within the vocabulary.
        num_top: how many of the likeliest tokens are wanted; more than there are means all.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.dtype != torch.float32 or logits.dim() != 2 or token_ids.shape != (logits.shape[0],):
        raise ValueError(f"logits must be float32 [{len(token_ids)}, vocab], not {logits.dtype} {list(logits.shape)}")
    logits = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # Where no logit is a number, nothing is likely.
    logprobs = torch.log_softmax(logits, dim=-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    given = torch.from_numpy(token_ids.astype(np.int64)).to(logits.device)
    values, ids = logprobs.topk(min(num_top, logits.shape[1]), dim=-1)
    return TokenScores(
        logprobs.gather(1, given[:, None])[:, 0].cpu().numpy(),
        ids.to(torch.int32).cpu().numpy(),
        values.cpu().numpy(),
    )
