"""Token ids that only the device knows, in Triton against torch."""

from __future__ import annotations

import pytest
import torch

from quire import kernels


@pytest.mark.parametrize("count", [1, 5, 255, 256, 700])
def test_take_last_tokens(count, device):
    generator = torch.Generator().manual_seed(count)
    last_tokens = torch.randint(0, 1 << 20, (37,), generator=generator, dtype=torch.int32)
    token_ids = torch.randint(-37, 40, (count,), generator=generator, dtype=torch.int32)
    expected = torch.where(token_ids < 0, last_tokens[(~token_ids).clamp(min=0)], token_ids)
    taken = token_ids.to(device)
    kernels.take_last_tokens(taken, last_tokens.to(device))
    assert taken.tolist() == expected.tolist()
