"""Against transformers' own function, bit for bit."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from quire import kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [20, 64, 128])
def test_equals_transformers(head_dim: int, dtype: torch.dtype):
    torch.manual_seed(0)
    query, key = torch.randn(11, 6, head_dim).to(dtype), torch.randn(11, 2, head_dim).to(dtype)
    positions = torch.randint(0, 2000, (11,))
    config = LlamaConfig(hidden_size=6 * head_dim, num_attention_heads=6, head_dim=head_dim)
    repeated_cos, repeated_sin = LlamaRotaryEmbedding(config)(query, positions[None])
    expected = apply_rotary_pos_emb(query[None], key[None], repeated_cos, repeated_sin, unsqueeze_dim=2)

    angles = positions[:, None].float() * LlamaRotaryEmbedding(config).inv_freq
    rotated = kernels.rotary_embedding(query, key, angles.cos(), angles.sin())
    assert torch.equal(rotated[0], expected[0][0])
    assert torch.equal(rotated[1], expected[1][0])


def test_partial_rotary_leaves_the_rest():
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 16), torch.randn(3, 1, 16)
    angles = torch.randn(3, 4)
    rotated, _ = kernels.rotary_embedding(query, key, angles.cos(), angles.sin())
    whole, _ = kernels.rotary_embedding(query[..., :8], key[..., :8], angles.cos(), angles.sin())
    assert torch.equal(rotated[..., :8], whole)
    assert torch.equal(rotated[..., 8:], query[..., 8:])


@pytest.mark.parametrize(
    ("name", "cos", "sin"),
    [
        ("cos", torch.ones(3, 8, dtype=torch.bfloat16), torch.ones(3, 8)),
        ("cos", torch.ones(3, 16), torch.ones(3, 16)),
        ("sin", torch.ones(3, 8), torch.ones(2, 8)),
        ("sin", torch.ones(3, 8), torch.ones(3, 4)),
    ],
)
def test_wrong_table_is_named(name: str, cos: torch.Tensor, sin: torch.Tensor):
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.rotary_embedding(torch.ones(3, 2, 16), torch.ones(3, 1, 16), cos, sin)
