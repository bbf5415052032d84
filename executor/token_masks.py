"""Which tokens a row may get, as bit masks over the vocabulary (see SamplingBatch.allowed_masks)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quire.kernels import SamplingBatch

# uint32 [words]: bit t % 32 of word t // 32 says whether token t is allowed; at least the vocabulary's.
Mask = NDArray[np.uint32]


def mask_of(token_ids: Iterable[int], vocab_size: int) -> Mask:
    """The mask that allows these tokens; ids beyond the vocabulary are passed over."""
    ids = np.fromiter(token_ids, np.int64)
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[ids[ids < vocab_size]] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def restrict(batch: SamplingBatch, masks: Mapping[int, Mask]) -> SamplingBatch:
    """The batch with masks for some of its rows, by row; one that has a mask already must obey both.

    Masks may differ in their number of words. Writes `mask_row` of the batch's rows.
    """
    if not masks:
        return batch
    known = [] if batch.allowed_masks is None else list(batch.allowed_masks)
    together = np.zeros((len(known) + len(masks), max(map(len, (*known, *masks.values())))), np.uint32)
    for index, mask in enumerate(known):
        together[index, : len(mask)] = mask
    mask_rows = batch.rows["mask_row"]
    for index, (row, mask) in enumerate(masks.items(), start=len(known)):
        together[index, : len(mask)] = mask
        if mask_rows[row] >= 0:
            together[index] &= together[mask_rows[row]]
        mask_rows[row] = index
    return replace(batch, allowed_masks=together)
