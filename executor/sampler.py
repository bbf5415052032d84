"""Logits → token ids and logprobs.

The order is vLLM's: logprobs of the untouched logits; logit bias; end tokens masked below min_tokens;
penalties; temperature; min_p; top_k; top_p; a draw.

Each filter is a lower bound on a token's probability, so that tokens of equal probability stay or go together and
no order among them matters: min_p keeps p ≥ min_p · max p, top_k keeps p ≥ the k-th largest, and top_p
(nucleus sampling, arXiv:1904.09751) keeps the most likely tokens down to the one with which their sum reaches
top_p of what min_p and top_k left. The draw inverts the distribution function over token ids in their natural
order, in float64, at the uniform number of (seed, sequence, position).

A row's result does not depend on the other rows: what runs over several rows at once works within each row
(softmax, cumulative sums, selection), and everything else is exact.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.executor.penalties import PenalisedRow, apply_penalties
from quire.executor.philox import uniform
from quire.executor.sequence import Sequence

# Elements of the rows that are drawn at once: bounds the float64 copies of a large vocabulary to 16 MiB.
_ELEMENTS_AT_ONCE: Final = 1 << 21
# Filters look at this many of the most likely tokens first, then at that many, and only then sort all.
_CANDIDATES: Final = (128, 2048)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own distribution, for one sampled row."""

    row: int
    logprob: float
    top_token_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """One token per row, and logprobs for the rows that asked."""

    token_ids: NDArray[np.int64]
    logprobs: list[TokenLogprobs]


def sample(logits: Tensor, sequences: list[Sequence]) -> Samples:
    """Samples the next token of each sequence.

    Args:
        logits: float32 [n, vocab]; changed in place.
        sequences: the n sequences, whose tokens so far decide positions and penalties.
    """
    reported = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    logprobs = torch.log_softmax(logits[reported], dim=-1) if reported else None
    _edit(logits, sequences)
    token_ids = _choose(logits, sequences)
    if logprobs is None:
        return Samples(token_ids.cpu().numpy(), [])
    return Samples(token_ids.cpu().numpy(), _report(logprobs, token_ids, reported, sequences))


def _edit(logits: Tensor, sequences: list[Sequence]) -> None:
    """Logit bias, min_tokens and penalties, in place; most rows want none of them."""
    for row, sequence in enumerate(sequences):
        sampling = sequence.sampling
        if len(sampling.bias_ids):
            ids = torch.from_numpy(sampling.bias_ids).to(logits.device)
            logits[row, ids] += torch.from_numpy(sampling.bias_values).to(logits.device)
        if sequence.num_output_tokens < sampling.min_tokens and len(sampling.stop_ids):
            logits[row, torch.from_numpy(sampling.stop_ids).to(logits.device)] = -torch.inf
    apply_penalties(
        logits,
        (
            PenalisedRow(row, sequence.sampling.penalties, sequence.token_counts)
            for row, sequence in enumerate(sequences)
            if sequence.token_counts is not None
        ),
    )


def _choose(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """int64 [n]: the most likely token (the lowest id of equals) at temperature 0, else a draw."""
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    if len(drawn) == len(sequences):
        token_ids = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
    else:
        token_ids = logits.argmax(dim=-1)
    if not drawn:
        return token_ids
    numbers = uniform(
        [sequences[row].sampling.seed for row in drawn],
        [sequences[row].num_output_tokens for row in drawn],
        [sequences[row].index for row in drawn],
    )
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // logits.shape[1])
    # Rows that need no filter skip the selection of candidates.
    for filtered in (False, True):
        group = [i for i, row in enumerate(drawn) if sequences[row].sampling.filtered is filtered]
        for start in range(0, len(group), rows_at_once):
            part = group[start : start + rows_at_once]
            rows = [drawn[i] for i in part]
            members = [sequences[row] for row in rows]
            probabilities = _probabilities(logits[rows], members)
            at = torch.from_numpy(numbers[part]).to(logits.device)
            draw = _draw_filtered(probabilities, members, at) if filtered else _draw(probabilities, at)
            token_ids[rows] = draw
    return token_ids


def _probabilities(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """float32 [n, vocab] at the rows' temperatures."""
    temperatures = _column([sequence.sampling.temperature for sequence in sequences], logits)
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


def _draw_filtered(probabilities: Tensor, sequences: list[Sequence], numbers: Tensor) -> Tensor:
    """Token ids [n] after min_p, top_k and top_p.

    The few most likely tokens nearly always hold all that is kept; the draw among them gives exactly what a
    draw among all gives, since a token that is left out adds 0 to the cumulative sum.
    """
    num_rows, vocab_size = probabilities.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=probabilities.device)
    undecided = list(range(num_rows))
    for count in (*(count for count in _CANDIDATES if count < vocab_size), vocab_size):
        complete = count == vocab_size
        rows = probabilities[undecided]
        values, ids = rows.sort(dim=-1, descending=True) if complete else rows.topk(count, dim=-1)
        bounds = _lower_bounds(values, [sequences[row] for row in undecided], complete=complete)
        token_ids[undecided] = _draw_among(values, ids, bounds, numbers[undecided])
        if complete:
            break
        undecided = [undecided[i] for i in (bounds <= values[:, -1]).nonzero()[:, 0].tolist()]
        if not undecided:
            break
    return token_ids


def _lower_bounds(values: Tensor, sequences: list[Sequence], *, complete: bool) -> Tensor:
    """float32 [n]: the least probability that is kept.

    `values` [n, m] are the largest probabilities of each row, descending; all of them if `complete`. If not, a
    bound is right if it is above the last of them, and otherwise only says that they were too few.
    """
    m = values.shape[1]
    plans = [sequence.sampling for sequence in sequences]
    floor = _column([plan.min_p for plan in plans], values)[:, 0] * values[:, 0]
    ranks = torch.tensor([min(plan.top_k, m) for plan in plans], device=values.device)
    least = values.gather(1, (ranks - 1).clamp(min=0)[:, None])[:, 0]
    floor = torch.where(ranks > 0, torch.maximum(floor, least), floor)

    kept = torch.where(values >= floor[:, None], values, 0.0)
    cumulative = torch.cumsum(kept, dim=-1, dtype=torch.float64)
    # Without another filter the sum over all tokens is 1 by definition, whatever it was rounded to.
    mass = torch.where(floor > 0, cumulative[:, -1], 1.0)
    top_p = torch.tensor([plan.top_p for plan in plans], dtype=torch.float64, device=values.device)
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


def _report(logprobs: Tensor, token_ids: Tensor, reported: list[int], sequences: list[Sequence]) -> list[TokenLogprobs]:
    """The logprobs of the rows in `reported`, which are the rows of `logprobs`."""
    chosen = logprobs.gather(1, token_ids[reported][:, None])[:, 0].tolist()
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(reported):
        groups[min(sequences[row].sampling.logprobs or 0, logprobs.shape[1])].append(i)
    reports = {}
    for count, members in groups.items():
        values, ids = logprobs[members].topk(count, dim=-1)
        for i, top_values, top_ids in zip(members, values.tolist(), ids.tolist(), strict=True):
            reports[i] = TokenLogprobs(reported[i], chosen[i], top_ids, top_values)
    return [reports[i] for i in range(len(reported))]


def _column(values: list[float], like: Tensor) -> Tensor:
    """float32 [n, 1] on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
