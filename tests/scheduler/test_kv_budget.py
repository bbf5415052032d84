"""The size of the pool."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from quire.config import SchedulerSettings
from quire.errors import KvPoolError, StartupError
from quire.internal.v1 import executor_pb2, scheduler_pb2
from quire.scheduler.kv_budget import check_reusable, plan_pool, plan_swap
from quire.serve import budget_table

GIB = 2**30


def _executor(available: int = 8 * GIB, **changes) -> executor_pb2.ExecutorDescription:
    """Qwen3-0.6B in bfloat16."""
    group = executor_pb2.CacheGroup(
        kind=executor_pb2.CACHE_GROUP_KIND_FULL_ATTENTION,
        num_layers=28,
        num_kv_heads=8,
        head_dim=128,
        bytes_per_token=2 * 28 * 8 * 128 * 2,
        element_bytes=2,
    )
    given = {
        "model": "qwen3-0.6b",
        "architecture": "Qwen3ForCausalLM",
        "dtype": "bfloat16",
        "pool_home": executor_pb2.POOL_HOME_HOST,
        "default_pool_share": 0.4,
        "num_ranks": 1,
        "cache_groups": [group],
        "max_model_len": 40960,
        "available_bytes": available,
        "total_bytes": 16 * GIB,
        "fingerprint": b"f" * 32,
        "weight_bytes": 1192099840,
    }
    return executor_pb2.ExecutorDescription(**{**given, **changes})


def _settings(**given) -> SchedulerSettings:
    return SchedulerSettings.load({"listen": "unix:/nowhere", "executors": ["unix:/nowhere"], **given})


def test_qwen3_takes_112_kib_per_token():
    layout = plan_pool(_settings(kv_cache_memory="7GiB"), [_executor()], epoch=1)
    assert layout.block_bytes == 16 * 112 * 1024
    assert layout.num_blocks == 7 * GIB // (16 * 112 * 1024)
    description = scheduler_pb2.DescribeResponse(
        num_blocks=layout.num_blocks,
        block_size=16,
        max_model_len=40960,
        kv_bytes_per_token=layout.block_bytes // 16,
        kv_cache_bytes=layout.num_blocks * layout.block_bytes,
        weight_bytes=1192099840,
        executors=[_executor()],
    )
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(budget_table(description))
    text = console.export_text()
    assert "112 KiB per token" in text
    assert "65,536" in text
    assert "1.6" in text, "requests of full length"
    console.file.close()


def test_scales_take_their_part():
    group = executor_pb2.CacheGroup(num_layers=28, num_kv_heads=8, head_dim=128, element_bytes=1, scale_bytes=4)
    layout = plan_pool(_settings(kv_cache_memory="7GiB"), [_executor(cache_groups=[group])], epoch=1)
    assert layout.block_bytes == 16 * 2 * 28 * 8 * (128 + 4)


def test_default_is_a_share_of_free_memory_bounded_by_use():
    assert plan_pool(_settings(), [_executor(20 * GIB)], 1).total_bytes <= 8.1 * GIB
    small = plan_pool(_settings(max_num_seqs=2), [_executor(64 * GIB, max_model_len=1024)], 1)
    assert small.num_blocks == 2 * 1024 // 16


def test_a_share_of_the_device_holds_weights_and_pool():
    layout = plan_pool(_settings(gpu_memory_utilization=0.5), [_executor()], 1)
    room = 8 * GIB - 1192099840
    assert room - layout.block_bytes < layout.total_bytes <= room
    measured = plan_pool(_settings(gpu_memory_utilization=0.5), [_executor(overhead_bytes=GIB)], 1)
    assert room - GIB - layout.block_bytes < measured.total_bytes <= room - GIB, "and what steps take"
    few = plan_pool(_settings(gpu_memory_utilization=0.5, max_num_seqs=2), [_executor(max_model_len=1024)], 1)
    assert few.num_blocks == 2 * 1024 // 16, "no more than the requests can use"
    exact = _settings(gpu_memory_utilization=0.5, kv_cache_memory="5GiB")
    assert plan_pool(exact, [_executor()], 1).total_bytes <= 5 * GIB, "an exact size is stronger"


def test_a_number_of_blocks():
    layout = plan_pool(_settings(num_gpu_blocks_override=3000), [_executor()], 1)
    assert layout.num_blocks == 3000
    with pytest.raises(KvPoolError, match=r"it has .* --num-gpu-blocks-override is"):
        check_reusable(layout, _settings(num_gpu_blocks_override=3001), [_executor()])


@pytest.mark.parametrize("setting", [{"gpu_memory_utilization": 0.95}, {"num_gpu_blocks_override": 10_000}])
def test_a_size_that_is_not_free_is_refused(setting):
    (name,) = setting
    with pytest.raises(KvPoolError, match=r"does not fit: 8\.00 GiB are free") as caught:
        plan_pool(_settings(**setting), [_executor()], 1)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("given", "executors", "message"),
    [
        ({"gpu_memory_utilization": 0.05}, [_executor()], "less than one request"),
        ({"kv_cache_memory": "9GiB"}, [_executor()], "do.* not fit"),
        ({"kv_cache_memory": "1GiB"}, [_executor()], "raise --kv-cache-memory or lower --max-model-len"),
        ({}, [_executor(GIB)], "less than one request"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(given, executors, message):
    with pytest.raises(KvPoolError, match=message) as caught:
        plan_pool(_settings(**given), executors, 1)
    assert caught.value.field == "kv_cache_memory"


@pytest.mark.parametrize("change", [{"fingerprint": b"g" * 32}, {"hidden_size": 7}, {"max_model_len": 77}])
def test_executors_on_one_pool_must_agree(change):
    with pytest.raises(StartupError, match="different models"):
        plan_pool(_settings(), [_executor(), _executor(**change)], 1)


def test_ranks_and_more_cache_groups_are_refused_until_they_work():
    with pytest.raises(StartupError, match="not supported"):
        plan_pool(_settings(), [_executor(num_ranks=2)], 1)


def test_memory_of_an_executor_is_not_for_several():
    executors = [_executor(pool_home=executor_pb2.POOL_HOME_EXECUTOR)] * 2
    with pytest.raises(StartupError, match="several executors cannot share") as caught:
        plan_pool(_settings(kv_cache_memory="7GiB"), executors, epoch=1)
    assert caught.value.field == "num_executors"
    assert plan_pool(_settings(kv_cache_memory="7GiB"), executors[:1], epoch=1).num_blocks == 4096


def test_the_executor_says_which_share_is_fitting():
    layout = plan_pool(_settings(), [_executor(available=10 * GIB, default_pool_share=0.5)], epoch=1)
    assert layout.num_blocks * layout.block_bytes == 5 * GIB // layout.block_bytes * layout.block_bytes


@pytest.mark.parametrize(
    ("swap_space", "num_blocks"), [(0, None), (1, GIB // (16 * 112 * 1024)), (0.5, GIB // 2 // (16 * 112 * 1024))]
)
def test_the_swap_tier_has_blocks_like_the_pool_s(swap_space, num_blocks):
    settings, executor = _settings(kv_cache_memory="7GiB", swap_space=swap_space), _executor(host_available_bytes=GIB)
    pool = plan_pool(settings, [executor], epoch=1)
    # The pool may lie with the executor, the tier never does.
    tier = plan_swap(settings, replace(pool, num_ranks=0), [executor], 0)
    if num_blocks is None:
        assert tier is None
    else:
        assert tier.num_ranks == 1
        assert (tier.num_blocks, tier.block_bytes, tier.epoch) == (num_blocks, pool.block_bytes, pool.epoch)


@pytest.mark.parametrize(
    ("swap_space", "missing", "message"),
    [
        (3, 0, "--swap-space: 3.00 GiB do not fit the host: 2.00 GiB are free"),
        (1.5, GIB, "--swap-space: 1.50 GiB do not fit the host beside 1.00 GiB of KV pool: 2.00 GiB are free"),
        (0.001, 0, "--swap-space: 0.00 GiB are less than a block"),
    ],
)
def test_a_swap_tier_that_does_not_fit(swap_space, missing, message):
    settings = _settings(kv_cache_memory="7GiB", swap_space=swap_space)
    executors = [_executor(host_available_bytes=2 * GIB), _executor(host_available_bytes=4 * GIB)]
    with pytest.raises(KvPoolError, match=message) as refused:
        plan_swap(settings, plan_pool(settings, executors, epoch=1), executors, missing)
    assert refused.value.field == "swap_space"


def test_a_swap_tier_needs_the_prefix_cache():
    with pytest.raises(StartupError, match=r"swap-space: .*needs the prefix cache"):
        _settings(swap_space=1, enable_prefix_caching=False)
