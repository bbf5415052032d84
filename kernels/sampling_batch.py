"""How the rows of one sampling call are sampled, and what comes out: columns, not objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLING_ROW", "SampledTokens", "SamplingBatch"]

#: quire_sampling_row of native/quire_sampling.h, field by field; what each means is told there and in `sampling`.
SAMPLING_ROW: Final = np.dtype(
    [
        ("seed", "<u8"),
        ("temperature", "<f4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("top_k", "<i4"),
        ("num_logprobs", "<i4"),
        ("sequence_index", "<u4"),
        ("min_tokens", "<i4"),
        ("num_prompt_tokens", "<i4"),
        ("num_tokens", "<i4"),
        ("token_row", "<i4"),
        ("mask_row", "<i4"),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class SamplingBatch:
    """The n rows of one call; arrays of the host, contiguous.

    Attributes:
        rows: SAMPLING_ROW [n].
        token_ids: int32 [num_token_rows, capacity]; row rows["token_row"] holds the history: the prompt, then the
            output. Only penalties read it.
        bias_starts: int32 [n + 1]; row i's logit bias is entries bias_starts[i] to bias_starts[i + 1] of
            bias_ids, int32, and bias_values, float32. None: no row has any.
        banned_starts: the same for banned_ids, tokens that an output shorter than min_tokens must not get.
        allowed_masks: uint32 [num_mask_rows, at least vocab / 32]; bit t % 32 of word t // 32 of row
            rows["mask_row"]: token t is allowed. None: no row has one.
    """

    rows: NDArray[np.void]
    token_ids: NDArray[np.int32]
    bias_starts: NDArray[np.int32] | None = None
    bias_ids: NDArray[np.int32] | None = None
    bias_values: NDArray[np.float32] | None = None
    banned_starts: NDArray[np.int32] | None = None
    banned_ids: NDArray[np.int32] | None = None
    allowed_masks: NDArray[np.uint32] | None = None

    @property
    def positions(self) -> NDArray[np.int32]:
        """int32 [n]: of the new tokens in their outputs, from 0."""
        difference: NDArray[np.int32] = self.rows["num_tokens"] - self.rows["num_prompt_tokens"]
        return difference


@dataclass(frozen=True, slots=True, eq=False)
class SampledTokens:
    """What was sampled for each of n rows.

    Attributes:
        token_ids: int32 [n].
        impossible: bool [n]; every logit was -inf or nan, and the token is 0.
        logprobs: float32 [n], natural logarithms; defined where num_logprobs >= 0. None: nowhere.
        top_token_ids: int32 [n, m], likeliest first; defined up to a row's num_logprobs. None with logprobs.
        top_logprobs: float32 [n, m].
    """

    token_ids: NDArray[np.int32]
    impossible: NDArray[np.bool_]
    logprobs: NDArray[np.float32] | None = None
    top_token_ids: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float32] | None = None
