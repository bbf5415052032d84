"""Sampling batches from keyword arguments, one dict a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quire.kernels import SAMPLING_ROW, SamplingBatch

DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "num_logprobs": -1}


def make_batch(plans: Sequence[dict[str, Any]], vocab_size: int) -> SamplingBatch:
    """A row for each plan: fields of SAMPLING_ROW, and `prompt`, `output`, `bias`, `banned`, `allowed`."""
    rows = np.zeros(len(plans), SAMPLING_ROW)
    histories = [[*plan.get("prompt", (1, 2)), *plan.get("output", ())] for plan in plans]
    token_ids = np.zeros((len(plans), max(map(len, histories), default=0) + 1), np.int32)
    masks = []
    for i, (plan, history) in enumerate(zip(plans, histories, strict=True)):
        fields = DEFAULTS | {name: value for name, value in plan.items() if name in SAMPLING_ROW.names}
        token_ids[i, : len(history)] = history
        fields |= {"token_row": i, "num_tokens": len(history), "num_prompt_tokens": len(plan.get("prompt", (1, 2)))}
        fields["mask_row"] = -1
        if "allowed" in plan:
            fields["mask_row"] = len(masks)
            masks.append(_mask(plan["allowed"], vocab_size))
        for name, value in fields.items():
            rows[i][name] = value
    biases = [plan.get("bias", {}) for plan in plans]
    banned = [list(plan.get("banned", ())) for plan in plans]
    return SamplingBatch(
        rows,
        token_ids,
        bias_starts=_starts(biases),
        bias_ids=np.array([token for bias in biases for token in bias], np.int32),
        bias_values=np.array([value for bias in biases for value in bias.values()], np.float32),
        banned_starts=_starts(banned),
        banned_ids=np.array([token for tokens in banned for token in tokens], np.int32),
        allowed_masks=np.stack(masks) if masks else None,
    )


def assert_drawn_from(token_ids: NDArray[np.int32], probabilities: NDArray[np.float64]) -> None:
    """Pearson's chi-squared test that tokens [n] were drawn from probabilities [vocab]; none where that is 0."""
    expected = probabilities * len(token_ids)
    counts = np.bincount(token_ids, minlength=len(expected))
    assert not counts[expected == 0].any()
    # Rare tokens together, as the test wants at least a handful in each class.
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    kept = wanted > 0
    statistic = ((observed[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    freedom = max(1, kept.sum() - 1)
    # Beyond the mean by four standard deviations of the distribution.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def _starts(lists: Sequence[Any]) -> np.ndarray:
    return np.cumsum([0, *(len(entries) for entries in lists)]).astype(np.int32)


def _mask(allowed: Iterable[int], vocab_size: int) -> np.ndarray:
    bits = np.zeros((vocab_size + 31) // 32 * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)
