"""Checkpoints of random weights in the shapes that are compared, in each engine's own format.

Speed does not depend on the weights' values. All formats hold the same bfloat16 weights, or what the engine's own
tool quantises from them. They are made once and kept in the peers' folder.
"""

import json
import string
import subprocess
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from peers.install import PEERS, venv_python

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions, by the keys of config.json."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def linear_parameters(self) -> int:
        """Weights that each token is multiplied with; the head, tied to the embedding, is one of them."""
        heads = self.num_attention_heads + self.num_key_value_heads
        layer = self.hidden_size * (2 * heads * self.head_dim + 3 * self.intermediate_size)
        return self.num_hidden_layers * layer + self.head_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of the output projection."""
        return self.vocab_size * self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a bfloat16 cache."""
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


SHAPES = {
    "smollm-135m": Shape("llama", 576, 30, 9, 3, 64, 1536, 49152),
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151936),
    # So small that only overhead is left. Heads of 32, the least that vLLM's attention for CPUs takes.
    "tiny": Shape("llama", 64, 2, 2, 1, 32, 128, 1024),
}

# Longest prompt plus output of any case.
_CONTEXT = 2048


def make_checkpoint(name: str, folder: Path) -> Path:
    """The Hugging Face checkpoint of a shape; runs in our own environment."""
    path = folder / name / "hf"
    if (path / "done").exists():
        return path
    import torch
    import transformers

    shape = SHAPES[name]
    config_type = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[shape.model_type]
    config = config_type(
        **{key: value for key, value in vars(shape).items() if key != "model_type"},
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=shape.vocab_size - 1,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    _save_tokenizer(path, shape.vocab_size)
    (path / "done").touch()
    return path


def make_gguf(name: str, quantization: str, folder: Path, root: Path) -> Path:
    """llama.cpp's file: BF16, Q8_0 or Q4_0."""
    source, target = make_checkpoint(name, folder), folder / name / f"{quantization}.gguf"
    if not target.exists():
        script = [str(HERE / "write_gguf.py"), str(source), str(target), quantization]
        subprocess.run([venv_python(PEERS["llama_cpp"], root), "-P", *script], check=True, timeout=1800)
    return target


def make_openvino(name: str, weight_format: str, folder: Path, root: Path) -> Path:
    """OpenVINO's folder, exported by optimum-intel with weights in fp16, int8 or int4."""
    source, target = make_checkpoint(name, folder), folder / name / f"openvino-{weight_format}"
    if not (target / "done").exists():
        exporter = Path(venv_python(PEERS["openvino_export"], root)).parent / "optimum-cli"
        command = [str(exporter), "export", "openvino", "-m", str(source), "--task", "text-generation-with-past"]
        if weight_format == "int4":
            # Its default of 128 does not divide a hidden size of 576.
            command += ["--group-size", "64"]
        subprocess.run([*command, "--weight-format", weight_format, str(target)], check=True, timeout=1800)
        (target / "done").touch()
    return target


def _save_tokenizer(path: Path, vocab_size: int) -> None:
    """A byte-level tokeniser in which every id stands for a short text: each token of a stream then has text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("".join(letters) for letters in product(string.ascii_lowercase, repeat=4))
    texts = ["<|begin|>", *alphabet, *(f"Ġ{word}" for word in words)]
    vocab = {text: i for i, text in enumerate(islice(texts, vocab_size - 1))} | {"<|end|>": vocab_size - 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>").save_pretrained(
        path
    )
    assert json.loads((path / "config.json").read_text())["vocab_size"] == vocab_size == len(vocab)
