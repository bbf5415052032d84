"""Rotary position embedding: Su et al., "RoFormer" (arXiv 2104.09864), halves split as in GPT-NeoX."""

import torch
from torch import Tensor

__all__ = ["rotary_embedding"]


def rotary_embedding(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate each pair (x[i], x[i + rotary_dim / 2]) of every head by its token's i-th angle.

    Equal bit for bit to apply_rotary_pos_emb of transformers' Llama, which repeats each angle for both halves
    and casts them to the query's dtype first. A rotary_dim below head_dim leaves the rest of each head as it
    is (partial rotary, as Phi and GLM have it).

    Args:
        query: [num_tokens, num_heads, head_dim].
        key: [num_tokens, num_kv_heads, head_dim].
        cos: float32 [num_tokens, rotary_dim / 2]: one angle a pair, not repeated.
        sin: as cos.

    Returns:
        (query, key), rotated, in new tensors.

    Raises:
        ValueError: cos or sin has another dtype or shape.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {table.dtype}")
        if table.dim() != 2 or table.shape[0] != query.shape[0] or 2 * table.shape[1] > query.shape[-1]:
            raise ValueError(f"{name} must be [{query.shape[0]}, rotary_dim / 2], not {list(table.shape)}")
    if cos.shape != sin.shape:
        raise ValueError(f"sin is {list(sin.shape)}, cos {list(cos.shape)}")
    cos, sin = cos.unsqueeze(1).to(query.dtype), sin.unsqueeze(1).to(query.dtype)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + -second * sin, second * cos + first * sin, rest), dim=-1)
