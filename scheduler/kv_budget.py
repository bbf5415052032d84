"""How large the KV pool is: from what executors say of the model and of free memory, and from the settings."""

from __future__ import annotations

from dataclasses import replace

from quire.config import SchedulerSettings
from quire.errors import KvPoolError, StartupError
from quire.internal.v1 import executor_pb2
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.settings import flag_name


def check_same_model(first: executor_pb2.ExecutorDescription, other: executor_pb2.ExecutorDescription) -> None:
    """Raises StartupError where the KV of one means nothing to the other."""
    agreed = ("fingerprint", "max_model_len", "hidden_size")
    if any(getattr(other, name) != getattr(first, name) for name in agreed):
        raise StartupError("the executors serve different models or settings and cannot share a KV pool")


def agreed_description(executors: list[executor_pb2.ExecutorDescription]) -> executor_pb2.ExecutorDescription:
    """What executors on one pool have in common. Raises StartupError if they serve different things."""
    first = executors[0]
    for other in executors[1:]:
        check_same_model(first, other)
    if len(first.cache_groups) != 1 or first.num_ranks != 1:
        raise StartupError(f"{first.architecture}: more than one cache group or rank is not supported")
    if first.pool_home == executor_pb2.POOL_HOME_EXECUTOR and len(executors) > 1:
        message = "several executors cannot share a KV pool that lies in an executor's own memory"
        raise StartupError(message, field="num_executors")
    return first


def plan_pool(
    settings: SchedulerSettings, executors: list[executor_pb2.ExecutorDescription], epoch: int
) -> KvPoolLayout:
    """The layout of the pool. Raises KvPoolError if it does not fit, or one full-length request does not fit it."""
    model = agreed_description(executors)
    layout = layout_of(model, settings.block_size, 1, epoch)
    available = min(executor.available_bytes for executor in executors)
    most_useful = settings.max_num_seqs * -(-model.max_model_len // settings.block_size) * layout.block_bytes
    exact = _exact_size(settings, layout.block_bytes)
    if exact is not None:
        setting, size = exact
    elif settings.gpu_memory_utilization is not None:
        setting, size = "gpu_memory_utilization", min(_share_beside_weights(settings, executors), most_useful)
    else:
        setting, size = "kv_cache_memory", min(int(available * model.default_pool_share), most_useful)
    if size > available:
        raise KvPoolError(
            f"{flag_name(setting)}: a KV pool of {_gib(size)} does not fit: {_gib(available)} are free", field=setting
        )
    num_blocks = size // layout.block_bytes
    _check_longest(num_blocks, layout, model)
    return layout_of(model, settings.block_size, num_blocks, epoch)


def check_reusable(
    layout: KvPoolLayout, settings: SchedulerSettings, executors: list[executor_pb2.ExecutorDescription]
) -> None:
    """Raises KvPoolError if a pool that is there already is not what this scheduler would make.

    Unless its exact size is given, any will do that holds one full-length request: what is free now says little, since
    the pool itself is not.
    """
    model = agreed_description(executors)
    if layout != layout_of(model, settings.block_size, layout.num_blocks, layout.epoch):
        raise KvPoolError("it is of another model, KV format or block size")
    exact = _exact_size(settings, layout.block_bytes)
    if exact is not None and layout.num_blocks != exact[1] // layout.block_bytes:
        raise KvPoolError(
            f"it has {_gib(layout.num_blocks * layout.block_bytes)}, {flag_name(exact[0])} is {_gib(exact[1])}"
        )
    _check_longest(layout.num_blocks, layout, model)


def plan_swap(
    settings: SchedulerSettings,
    layout: KvPoolLayout,
    executors: list[executor_pb2.ExecutorDescription],
    num_missing_bytes: int,
) -> KvPoolLayout | None:
    """The layout of the swap tier behind a pool, which takes `num_missing_bytes` more of the host; None without one.

    Raises KvPoolError if it does not fit the host's free memory.
    """
    size = int(settings.swap_space * 2**30)
    if not size:
        return None
    flag, available = flag_name("swap_space"), min(executor.host_available_bytes for executor in executors)
    if size + num_missing_bytes > available:
        beside = f" beside {_gib(num_missing_bytes)} of KV pool" if num_missing_bytes else ""
        raise KvPoolError(
            f"{flag}: {_gib(size)} do not fit the host{beside}: {_gib(available)} are free", field="swap_space"
        )
    if size < layout.block_bytes:
        raise KvPoolError(
            f"{flag}: {_gib(size)} are less than a block of {_gib(layout.block_bytes)}", field="swap_space"
        )
    # Here, wherever the pool is.
    return replace(layout, num_blocks=size // layout.block_bytes, num_ranks=1)


def _exact_size(settings: SchedulerSettings, block_bytes: int) -> tuple[str, int] | None:
    """The setting that says how many bytes the pool has, and how many."""
    if settings.kv_cache_memory is not None:
        return "kv_cache_memory", int(settings.kv_cache_memory)
    if settings.num_gpu_blocks_override is not None:
        return "num_gpu_blocks_override", settings.num_gpu_blocks_override * block_bytes
    return None


def _share_beside_weights(settings: SchedulerSettings, executors: list[executor_pb2.ExecutorDescription]) -> int:
    """Bytes that --gpu-memory-utilization leaves for the pool: executors of one host share their weights."""
    assert settings.gpu_memory_utilization is not None
    total = min(executor.total_bytes for executor in executors)
    taken = executors[0].weight_bytes + max(executor.overhead_bytes for executor in executors)
    return max(0, int(total * settings.gpu_memory_utilization) - taken)


def layout_of(model: executor_pb2.ExecutorDescription, block_size: int, num_blocks: int, epoch: int) -> KvPoolLayout:
    """The layout of a pool of `num_blocks` blocks for a model."""
    groups = tuple(
        CacheGroupLayout(group.num_layers, group.num_kv_heads, group.head_dim, group.element_bytes, group.scale_bytes)
        for group in model.cache_groups
    )
    num_ranks = 0 if model.pool_home == executor_pb2.POOL_HOME_EXECUTOR else model.num_ranks
    return KvPoolLayout(block_size, num_blocks, num_ranks, epoch, model.fingerprint, groups)


def _check_longest(num_blocks: int, layout: KvPoolLayout, model: executor_pb2.ExecutorDescription) -> None:
    num_tokens = num_blocks * layout.block_size
    if num_tokens < model.max_model_len:
        needed = -(-model.max_model_len // layout.block_size) * layout.block_bytes
        raise KvPoolError(
            f"a KV pool of {_gib(num_blocks * layout.block_bytes)} holds {num_tokens} tokens, less than one request of "
            f"max_model_len {model.max_model_len} ({_gib(needed)}); raise --kv-cache-memory or lower --max-model-len",
            field="kv_cache_memory",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
