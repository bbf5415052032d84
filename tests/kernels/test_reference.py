"""The reference itself, against torch's own attention on contiguous tensors."""

import pytest
import torch
from torch.nn import functional

from quire import kernels
from quire.kernels import reference


@pytest.mark.parametrize("sliding_window", [None, 1, 5, 40])
@pytest.mark.parametrize("query_len", [1, 7, 37])
def test_equals_scaled_dot_product_attention(query_len: int, sliding_window: int | None):
    torch.manual_seed(0)
    context_len, kv_heads, group, head_dim, block_size = 37, 2, 3, 16, 4
    key, value = torch.randn(2, context_len, kv_heads, head_dim)
    query = torch.randn(query_len, kv_heads * group, head_dim)
    key_cache, value_cache = torch.full((2, 12, kv_heads, block_size, head_dim), float("nan"))
    block_table = torch.randperm(12).int()[:10]
    positions = torch.arange(context_len)
    slots = block_table.long()[positions // block_size] * block_size + positions % block_size
    reference.store_kv(key, value, key_cache, value_cache, slots)
    metadata = kernels.AttentionMetadata(
        torch.tensor([0, query_len], dtype=torch.int32),
        torch.tensor([context_len], dtype=torch.int32),
        block_table[None],
        slots[context_len - query_len :],
    )
    output = reference.paged_attention(query, key_cache, value_cache, metadata, 0.3, sliding_window)

    distance = positions[context_len - query_len :, None] - positions[None, :]
    mask = (distance >= 0) & (distance < (sliding_window or context_len))
    expected = functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        key.transpose(0, 1).repeat_interleave(group, 0),
        value.transpose(0, 1).repeat_interleave(group, 0),
        attn_mask=mask,
        scale=0.3,
    ).transpose(0, 1)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
