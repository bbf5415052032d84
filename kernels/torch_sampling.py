"""Sampling in torch: the reference that the others are tested against, and for GPUs without Triton. See `sampling`.

What runs over several rows at once works within each row (softmax, cumulative sums, selection), and everything else
is exact: so a row's result does not depend on the other rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .philox import uniform
from .sampling_batch import SampledTokens, SamplingBatch

__all__ = ["apply_penalties", "sample"]

# Elements of the rows that are drawn at once: bounds the float64 copies of a large vocabulary to 16 MiB.
_ELEMENTS_AT_ONCE: Final = 1 << 21
# Filters look at this many of the most likely tokens first, then at that many, and only then sort all.
_CANDIDATES: Final = (128, 2048)

_Rows = NDArray[np.void]


def sample(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    """As `sampling.sample`."""
    infinity = torch.inf
    logits.nan_to_num_(nan=-infinity, posinf=infinity, neginf=-infinity)
    reported = np.flatnonzero(batch.rows["num_logprobs"] >= 0)
    logprobs = torch.log_softmax(logits[reported], dim=-1) if len(reported) else None
    _edit(logits, batch)
    highest, token_ids = logits.max(dim=-1)
    drawn = np.flatnonzero(batch.rows["temperature"] > 0)
    if len(drawn):
        at = torch.from_numpy(drawn).to(logits.device)
        # Without a finite maximum there is no distribution; +inf is certain.
        token_ids[at] = torch.where(highest[at].isfinite(), _draw_rows(logits, batch, drawn), token_ids[at])
    sampled = SampledTokens(token_ids.to(torch.int32).cpu().numpy(), (highest == -infinity).cpu().numpy())
    return sampled if logprobs is None else _report(logprobs, sampled, reported, batch)


def _edit(logits: Tensor, batch: SamplingBatch) -> None:
    """Logit bias, banned and masked tokens, and penalties, in place; most rows want none of them."""
    device = logits.device
    for row in _rows_with_entries(batch.bias_starts):
        assert batch.bias_starts is not None and batch.bias_ids is not None and batch.bias_values is not None
        entries = slice(batch.bias_starts[row], batch.bias_starts[row + 1])
        ids, values = torch.from_numpy(batch.bias_ids[entries]), torch.from_numpy(batch.bias_values[entries])
        logits[row, ids.to(device)] += values.to(device)
    short = batch.positions < batch.rows["min_tokens"]
    for row in _rows_with_entries(batch.banned_starts):
        assert batch.banned_starts is not None and batch.banned_ids is not None
        if short[row]:
            ids = torch.from_numpy(batch.banned_ids[batch.banned_starts[row] : batch.banned_starts[row + 1]])
            logits[row, ids.to(device)] = -torch.inf
    for row in np.flatnonzero(batch.rows["mask_row"] >= 0).tolist():
        assert batch.allowed_masks is not None
        words = batch.allowed_masks[batch.rows["mask_row"][row]]
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: logits.shape[1]]
        logits[row].masked_fill_(torch.from_numpy(allowed == 0).to(device), -torch.inf)
    apply_penalties(logits, batch)


def _rows_with_entries(starts: NDArray[np.int32] | None) -> list[int]:
    return [] if starts is None else np.flatnonzero(np.diff(starts)).tolist()


def apply_penalties(logits: Tensor, batch: SamplingBatch) -> None:
    """Changes the logits float32 [n, vocab] in place, repetition first."""
    rows = batch.rows
    penalised = np.flatnonzero(
        (rows["repetition_penalty"] != 1) | (rows["frequency_penalty"] != 0) | (rows["presence_penalty"] != 0)
    )
    for row in penalised.tolist():
        plan = rows[row]
        history = batch.token_ids[plan["token_row"], : plan["num_tokens"]]
        # How often each token of the vocabulary occurred; ids beyond it have no logit.
        ids, position = np.unique(history, return_inverse=True)
        counts = np.bincount(position[plan["num_prompt_tokens"] :], minlength=len(ids)).astype(np.float32)
        ids, counts = ids[ids < logits.shape[1]], counts[ids < logits.shape[1]]
        at = torch.from_numpy(ids).to(logits.device)
        subtracted = plan["frequency_penalty"] * counts + plan["presence_penalty"] * (counts > 0)
        values, factor = logits[row, at], float(plan["repetition_penalty"])
        values = torch.where(values > 0, values / factor, values * factor)
        logits[row, at] = values - torch.from_numpy(subtracted).to(logits.device)


def _draw_rows(logits: Tensor, batch: SamplingBatch, drawn: NDArray[np.int64]) -> Tensor:
    """int64 [len(drawn)]: a token for each of the rows `drawn`."""
    rows = batch.rows[drawn]
    numbers = uniform(rows["seed"], batch.positions[drawn], rows["sequence_index"])
    top_k = rows["top_k"]
    filtered = ((top_k > 0) & (top_k < logits.shape[1])) | (rows["top_p"] < 1) | (rows["min_p"] > 0)
    token_ids = torch.empty(len(drawn), dtype=torch.int64, device=logits.device)
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // logits.shape[1])
    # Rows that need no filter skip the selection of candidates.
    for wanted in (False, True):
        group = np.flatnonzero(filtered == wanted)
        for start in range(0, len(group), rows_at_once):
            part = group[start : start + rows_at_once]
            probabilities = _probabilities(logits[drawn[part]], rows[part])
            at = torch.from_numpy(numbers[part]).to(logits.device)
            draw = _draw_filtered(probabilities, rows[part], at) if wanted else _draw(probabilities, at)
            token_ids[part] = draw
    return token_ids


def _probabilities(logits: Tensor, rows: _Rows) -> Tensor:
    """float32 [n, vocab] at the rows' temperatures."""
    temperatures = torch.from_numpy(rows["temperature"].copy()).to(logits.device)[:, None]
    # The largest becomes 0 first, so that no temperature, however small, overflows.
    return torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperatures, dim=-1)


def _draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """Indices [n] drawn in proportion to `weights` [n, m], at uniform `numbers` float64 [n]."""
    cumulative = torch.cumsum(weights, dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Rounding must not reach the total itself: beyond it there is no token.
    below = torch.nextafter(total, torch.zeros_like(total))
    found = torch.searchsorted(cumulative, torch.minimum(numbers[:, None] * total, below), right=True)
    # Only logits that are not numbers lead past the end.
    return found[:, 0].clamp(max=weights.shape[1] - 1)


def _draw_filtered(probabilities: Tensor, rows: _Rows, numbers: Tensor) -> Tensor:
    """Token ids [n] after min_p, top_k and top_p.

    The few most likely tokens nearly always hold all that is kept; the draw among them gives exactly what a
    draw among all gives, since a token that is left out adds 0 to the cumulative sum.
    """
    num_rows, vocab_size = probabilities.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=probabilities.device)
    undecided = list(range(num_rows))
    for count in (*(count for count in _CANDIDATES if count < vocab_size), vocab_size):
        complete = count == vocab_size
        open_rows = probabilities[undecided]
        values, ids = open_rows.sort(dim=-1, descending=True) if complete else open_rows.topk(count, dim=-1)
        bounds = _lower_bounds(values, rows[undecided], complete=complete)
        token_ids[undecided] = _draw_among(values, ids, bounds, numbers[undecided])
        if complete:
            break
        undecided = [undecided[i] for i in (bounds <= values[:, -1]).nonzero()[:, 0].tolist()]
        if not undecided:
            break
    return token_ids


def _lower_bounds(values: Tensor, rows: _Rows, *, complete: bool) -> Tensor:
    """float32 [n]: the least probability that is kept.

    `values` [n, m] are the largest probabilities of each row, descending; all of them if `complete`. If not, a
    bound is right if it is above the last of them, and otherwise only says that they were too few.
    """
    m = values.shape[1]
    floor = torch.from_numpy(rows["min_p"].copy()).to(values.device) * values[:, 0]
    ranks = torch.from_numpy(np.minimum(rows["top_k"], m).astype(np.int64)).to(values.device)
    least = values.gather(1, (ranks - 1).clamp(min=0)[:, None])[:, 0]
    floor = torch.where(ranks > 0, torch.maximum(floor, least), floor)

    kept = torch.where(values >= floor[:, None], values, 0.0)
    cumulative = torch.cumsum(kept, dim=-1, dtype=torch.float64)
    # Without another filter the sum over all tokens is 1 by definition, whatever it was rounded to.
    mass = torch.where(floor > 0, cumulative[:, -1], 1.0)
    top_p = torch.from_numpy(rows["top_p"].astype(np.float64)).to(values.device)
    last = (cumulative < (top_p * mass)[:, None]).sum(dim=-1).clamp(max=m - 1)
    nucleus = torch.maximum(floor, values.gather(1, last[:, None])[:, 0])
    bounds = torch.where(top_p < 1, nucleus, floor)
    if complete:
        return bounds
    # What is above a floor that lies below all of `values` has a sum that they do not tell.
    return torch.where((floor > 0) & (floor <= values[:, -1]), floor, bounds)


def _draw_among(values: Tensor, ids: Tensor, bounds: Tensor, numbers: Tensor) -> Tensor:
    """Token ids [n] drawn among those of `values` [n, m] that reach their row's bound."""
    weights = torch.where(values >= bounds[:, None], values, 0.0)
    ids, order = ids.sort(dim=-1)
    chosen = _draw(weights.gather(1, order), numbers)
    return ids.gather(1, chosen[:, None])[:, 0]


def _report(
    logprobs: Tensor, sampled: SampledTokens, reported: NDArray[np.int64], batch: SamplingBatch
) -> SampledTokens:
    """Adds the logprobs [len(reported), vocab] of the rows in `reported`."""
    # Where no logit is a number, nothing is likely.
    logprobs = logprobs.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    ids = torch.from_numpy(sampled.token_ids[reported].astype(np.int64)).to(logprobs.device)
    num_rows, most = len(batch.rows), int(batch.rows["num_logprobs"].max())
    top_values, top_ids = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    chosen = np.zeros(num_rows, np.float32)
    all_ids, all_values = np.zeros((num_rows, most), np.int32), np.zeros((num_rows, most), np.float32)
    chosen[reported] = logprobs.gather(1, ids[:, None])[:, 0].cpu().numpy()
    all_ids[reported, : top_ids.shape[1]] = top_ids.cpu().numpy()
    all_values[reported, : top_ids.shape[1]] = top_values.cpu().numpy()
    return SampledTokens(sampled.token_ids, sampled.impossible, chosen, all_ids, all_values)
