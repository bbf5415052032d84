"""Small random checkpoints in the format of Hugging Face, for comparisons with transformers.

The weights are scaled so that logits spread over several units, as a trained model's do, and greedy decoding
has clear winners; the tokeniser maps bytes to ids, so that every text can be served.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

BOS_ID, EOS_ID = 256, 257

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}

# The chosen head_dim of Qwen3 is not hidden_size / heads, as in the real models.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}

_CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


def make_checkpoint(
    folder: Path,
    architecture: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Saves a model of random weights, its config.json and a byte-level tokeniser.

    Args:
        folder: where to; created if it is not there.
        architecture: one of ARCHITECTURES.
        dtype: of the saved weights.
        seed: of the weights.
        max_shard_size: smaller than the weights, several files and an index are written.
        overrides: keys of config.json.

    Returns:
        The folder.
    """
    config = _CONFIGS[architecture](**{**_BASE, **_OWN[architecture], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _randomise(name, parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    save_byte_tokenizer(folder)
    return folder


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' own model of a checkpoint, which tests compare with."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def edit_config(folder: Path, **changes: Any) -> None:
    """Overwrites keys of a saved config.json; None removes a key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def save_byte_tokenizer(folder: Path) -> None:
    """A tokeniser whose first 256 tokens are the bytes, then <|begin|> and <|end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", chat_template=_CHAT_TEMPLATE
    )
    assert fast.convert_tokens_to_ids(["<|begin|>", "<|end|>"]) == [BOS_ID, EOS_ID]
    fast.save_pretrained(folder)


def _randomise(name: str, parameter: torch.Tensor) -> None:
    if name.endswith("norm.weight"):
        parameter.normal_(1.0, 0.2)
    elif name.endswith("bias"):
        parameter.normal_(0.0, 0.3)
    elif "embed_tokens" in name:
        parameter.normal_(0.0, 0.5)
    else:
        # Unit variance through each projection; the head's logits spread over several units.
        gain = 4.0 if "lm_head" in name else 1.3
        parameter.normal_(0.0, gain * parameter.shape[1] ** -0.5)
