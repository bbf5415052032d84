"""Views of the pool, and refusals of pools that are not ours."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from quire.errors import KvPoolError
from quire.executor.kv_cache import KvCache, check_layout, check_model
from quire.kernels import QuantizedCache
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool

GROUP = CacheGroupLayout(num_layers=3, num_kv_heads=2, head_dim=8, element_bytes=4)
LAYOUT = KvPoolLayout(4, 6, 1, 1, b"f" * 32, (GROUP,))


def test_layers_are_views_of_the_pools_bytes() -> None:
    with KvPool.create_memfd(LAYOUT) as pool:
        cache, descriptor = KvCache.map(pool, 0, GROUP, torch.float32), os.dup(pool.fd)
    keys, values = cache.layers[1]
    assert keys.shape == values.shape == (6, 2, 4, 8)
    keys[5, 1, 3, 7], values[5, 0, 0, 0] = 1.5, 2.5
    # As kv_pool.py draws it: block 5, layer 1, keys and then values.
    with KvPool(descriptor) as again:
        elements = np.frombuffer(again.segment(0), dtype=np.float32).reshape(6, 3, 2, 2, 4, 8)
        assert elements[5, 1, 0, 1, 3, 7] == 1.5
        assert elements[5, 1, 1, 0, 0, 0] == 2.5
        assert np.count_nonzero(elements) == 2
        del elements


def test_bfloat16_pools() -> None:
    group = CacheGroupLayout(1, 1, 4, 2)
    with KvPool.create_memfd(KvPoolLayout(2, 3, 1, 1, b"f" * 32, (group,))) as pool:
        cache = KvCache.map(pool, 0, group, torch.bfloat16)
    assert cache.layers[0][0].dtype == torch.bfloat16
    assert cache.blocks.shape == (3, 32)


def test_allocated_caches_have_the_type_asked_for() -> None:
    device = torch.device("cpu")
    for element_bytes, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        group = CacheGroupLayout(1, 1, 4, element_bytes)
        keys, _ = KvCache.allocate(2, 4, group, dtype, device).layers[0]
        assert keys.dtype == dtype


def test_int8_pools_have_scales_after_the_values() -> None:
    group = CacheGroupLayout(num_layers=3, num_kv_heads=2, head_dim=8, element_bytes=1, scale_bytes=4)
    with KvPool.create_memfd(KvPoolLayout(4, 6, 1, 1, b"f" * 32, (group,))) as pool:
        cache, descriptor = KvCache.map(pool, 0, group, torch.int8), os.dup(pool.fd)
    keys, values = cache.layers[1]
    assert isinstance(keys, QuantizedCache) and isinstance(values, QuantizedCache)
    assert keys.data.shape == values.data.shape == (6, 2, 4, 8)
    assert keys.scales.shape == values.scales.shape == (6, 2, 4)
    keys.data[5, 1, 3, 7], values.data[5, 0, 0, 0] = 7, 9
    keys.scales[5, 1, 3], values.scales[5, 0, 0] = 1.5, 2.5
    with KvPool(descriptor) as again:
        layer = np.frombuffer(again.segment(0), dtype=np.int8).reshape(6, 3, -1)[5, 1]
        assert layer.size == 2 * 2 * 4 * 8 + 2 * 2 * 4 * 4
        data, scales = layer[:128].reshape(2, 2, 4, 8), layer[128:].view(np.float32).reshape(2, 2, 4)
        assert (data[0, 1, 3, 7], data[1, 0, 0, 0]) == (7, 9)
        assert (scales[0, 1, 3], scales[1, 0, 0]) == (1.5, 2.5)
        del layer, data, scales


def test_fp8_pools_have_scales_too() -> None:
    group = CacheGroupLayout(num_layers=3, num_kv_heads=2, head_dim=8, element_bytes=1, scale_bytes=4)
    cache = KvCache.allocate(6, 4, group, torch.float8_e4m3fn, torch.device("cpu"))
    for keys, values in cache.layers:
        assert isinstance(keys, QuantizedCache) and isinstance(values, QuantizedCache)
        assert keys.data.dtype == values.data.dtype == torch.float8_e4m3fn
        assert keys.scales.shape == values.scales.shape == (6, 2, 4)


def test_copying_blocks_copies_all_layers() -> None:
    cache = KvCache.allocate(6, 4, GROUP, torch.float32, torch.device("cpu"))
    cache.blocks[2].copy_(torch.arange(cache.blocks.shape[1]) % 251)
    cache.copy_blocks(np.array([2, 2]), np.array([0, 5]))
    assert torch.equal(cache.blocks[0], cache.blocks[2]) and torch.equal(cache.blocks[5], cache.blocks[2])
    assert not cache.blocks[[1, 3, 4]].any()


def test_a_pool_that_is_not_as_announced_is_refused() -> None:
    check_layout(LAYOUT, num_blocks=6, block_size=4, epoch=1)
    for changes in ({"num_blocks": 7}, {"block_size": 8}, {"epoch": 2}):
        with pytest.raises(KvPoolError, match="announced were"):
            check_layout(LAYOUT, **{"num_blocks": 6, "block_size": 4, "epoch": 1, **changes})


def test_a_pool_of_another_model_is_refused() -> None:
    check_model(LAYOUT, fingerprint=b"f" * 32, group=GROUP, rank=0)
    with pytest.raises(KvPoolError, match="other weights"):
        check_model(LAYOUT, fingerprint=b"g" * 32, group=GROUP, rank=0)
    with pytest.raises(KvPoolError, match="this model needs"):
        check_model(LAYOUT, fingerprint=b"f" * 32, group=CacheGroupLayout(3, 2, 8, 2), rank=0)
    with pytest.raises(KvPoolError, match="rank 1"):
        check_model(LAYOUT, fingerprint=b"f" * 32, group=GROUP, rank=1)
