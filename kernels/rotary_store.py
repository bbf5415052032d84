"""What stands between the projection of queries, keys and values, and attention: norms, rotation, the cache's write."""

import torch
from torch import Tensor

from . import native_attention, torch_paged
from .backend import implementation_for
from .cache import Cache, elements
from .checks import FLOAT_DTYPES, check_cache, check_slot_bounds, check_slots

__all__ = ["rotate_and_store"]


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    slot_mapping: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norm and rotate queries and keys where they lie, and write keys and values into their slots.

    `rms_norm` of every head of queries and keys (where it has a weight), `rotary_embedding`, `store_kv` in one pass.
    A token's result does not depend on the others.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], float32 (bfloat16 and float16 too where torch or
            Triton runs), last dimension contiguous: all queries, then all keys, then all values. Queries and keys
            are overwritten.
        cos: float32 [num_tokens, rotary_dim / 2], contiguous, as in `rotary_embedding`.
        sin: as cos.
        key_cache: as in `store_kv`.
        value_cache: as key_cache.
        slot_mapping: as in `store_kv`.
        q_norm: [head_dim] in qkv's type, contiguous; None: queries are not normed.
        k_norm: the same of the keys.
        eps: as in `rms_norm`.

    Raises:
        ValueError: an argument has the wrong dtype, shape, layout or device, or a slot lies outside the
            cache (on a GPU slots are not looked at).
    """
    check_cache(key_cache, value_cache)
    check_slots(slot_mapping, key_cache)
    keys = elements(key_cache)
    num_blocks, num_kv_heads, block_size, head_dim = keys.shape
    num_tokens = slot_mapping.shape[0]
    implementation = implementation_for(keys.device)
    dtypes = (torch.float32,) if implementation == "native" else FLOAT_DTYPES
    if qkv.dtype not in dtypes or qkv.dim() != 2 or qkv.stride(1) != 1 or qkv.device != keys.device:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"qkv must be {names} [num_tokens, heads * head_dim] on {keys.device}, rows contiguous")
    if qkv.shape[0] != num_tokens or qkv.shape[1] % head_dim or qkv.shape[1] <= 2 * num_kv_heads * head_dim:
        raise ValueError(
            f"qkv must be [{num_tokens}, (num_heads + {2 * num_kv_heads}) * {head_dim}], not {list(qkv.shape)}"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        _check(name, table, torch.float32, keys.device)
        if table.dim() != 2 or table.shape != cos.shape or len(table) != num_tokens or 2 * table.shape[1] > head_dim:
            raise ValueError(f"{name} must be [{num_tokens}, rotary_dim / 2], not {list(table.shape)}")
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            _check(name, weight, qkv.dtype, keys.device)
            if weight.shape != (head_dim,):
                raise ValueError(f"{name} must be [{head_dim}], not {list(weight.shape)}")
    if num_tokens == 0:
        return
    if implementation == "native":
        run = native_attention.rotate_and_store
    elif implementation == "triton":
        from .triton import rotary_store

        run = rotary_store.rotate_and_store
    else:
        if keys.device.type == "cpu":
            check_slot_bounds(slot_mapping, num_blocks * block_size)
        run = torch_paged.rotate_and_store
    run(qkv, cos, sin, key_cache, value_cache, slot_mapping, q_norm, k_norm, eps)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device != device:
        raise ValueError(f"{name} must be contiguous {dtype} on {device}, not {tensor.dtype} on {tensor.device}")
