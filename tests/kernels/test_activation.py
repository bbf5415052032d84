"""Against transformers' own module, bit for bit.

Torch's vector loop takes 32 elements at a time and leaves a tail to the scalar exp, which rounds otherwise: the size
is a multiple of 32, as models' are.
"""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from quire import kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(dtype: torch.dtype):
    torch.manual_seed(0)
    mlp = LlamaMLP(LlamaConfig(hidden_size=48, intermediate_size=96, num_attention_heads=4)).to(dtype)
    x = torch.randn(7, 48).to(dtype)
    with torch.no_grad():
        gate_up = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=-1)
        down = kernels.linear(kernels.silu_and_mul(gate_up), mlp.down_proj.weight)
        assert torch.equal(down, mlp(x))
