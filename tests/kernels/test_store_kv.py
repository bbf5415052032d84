"""Writes of new keys and values, native and torch, against the reference."""

from typing import Any

import pytest
import torch

from quire import kernels
from quire.kernels import reference


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 7, 3000])  # the last is shared among threads
def test_equals_reference(implementation: Any, dtype: torch.dtype, num_tokens: int):
    torch.manual_seed(0)
    kernels.set_implementation(implementation)
    pool = torch.zeros(300, 2, 2, 3, 16, 20, dtype=dtype)
    expected = pool.clone()
    # As a model has them: views of one packed projection.
    packed = torch.randn(num_tokens, 10, 20).to(dtype)
    key, value = packed[:, 4:7], packed[:, 7:]
    slots = torch.randperm(300 * 16)[:num_tokens]
    kernels.store_kv(key, value, pool[:, 1, 0], pool[:, 1, 1], slots)
    reference.store_kv(key, value, expected[:, 1, 0], expected[:, 1, 1], slots)
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize("slot", [-1, 64])
def test_slot_outside_the_cache(implementation: Any, slot: int):
    kernels.set_implementation(implementation)
    key_cache, value_cache = torch.zeros(2, 4, 1, 16, 8)
    new = torch.ones(2, 1, 8)
    with pytest.raises(ValueError, match=r"^slot_mapping"):
        kernels.store_kv(new, new, key_cache, value_cache, torch.tensor([0, slot]))
    assert not key_cache.any()  # nothing was written, not even the good slot
    assert not value_cache.any()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key", {"key": torch.ones(3, 1, 8)}),
        ("key", {"key": torch.ones(2, 2, 8)}),
        ("value", {"value": torch.ones(2, 1, 8, dtype=torch.bfloat16)}),
        ("value", {"value": torch.ones(2, 1, 16)[:, :, ::2]}),
        ("slot_mapping", {"slot_mapping": torch.tensor([0, 1], dtype=torch.int32)}),
        ("slot_mapping", {"slot_mapping": torch.tensor([[0, 1]])}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[str, torch.Tensor]):
    arguments = {
        "key": torch.ones(2, 1, 8),
        "value": torch.ones(2, 1, 8),
        "key_cache": torch.zeros(4, 1, 16, 8),
        "value_cache": torch.zeros(4, 1, 16, 8),
        "slot_mapping": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.store_kv(**(arguments | change))


def test_no_tokens():
    cache = torch.zeros(4, 1, 16, 8)
    kernels.store_kv(torch.ones(0, 1, 8), torch.ones(0, 1, 8), cache, cache, torch.zeros(0, dtype=torch.int64))
    assert not cache.any()
