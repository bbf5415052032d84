"""Writes a Hugging Face checkpoint as GGUF: write_gguf.py SOURCE TARGET BF16|Q8_0|Q4_0, in llama.cpp's environment.

As llama.cpp's own converter does it: norms in float32; for Llama, the rows of the query and key projections permuted
from halves to pairs (the two layouts of rotary embeddings), for Qwen3 not. The vocabulary is left out: prompts are
token ids. All matrices get the one format, the embedding that is also the head too; llama.cpp's own tool would give
that one 6 bits in a Q4_0 file, and it would be slower.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def read_bfloat16(path):
    """Yields (name, float32 array) of a safetensors file; numpy has no bfloat16."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16", name
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            halves = np.frombuffer(file.read(end - begin), np.uint16).astype(np.uint32)
            yield name, (halves << 16).view(np.float32).reshape(entry["shape"])


def target_name(name):
    """llama.cpp's name of a tensor."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permute(weights, heads):
    """Rows of each head from (first half, second half) to alternating."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    """Convert."""
    source, target, kind = Path(sys.argv[1]), sys.argv[2], gguf.GGMLQuantizationType[sys.argv[3]]
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, weights in read_bfloat16(source / "model.safetensors"):
        if config["model_type"] == "llama" and "q_proj" in name:
            weights = permute(weights, heads)
        if config["model_type"] == "llama" and "k_proj" in name:
            weights = permute(weights, kv_heads)
        if weights.ndim == 1:
            writer.add_tensor(target_name(name), np.ascontiguousarray(weights))
        else:
            packed = gguf.quants.quantize(np.ascontiguousarray(weights), kind)
            writer.add_tensor(target_name(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
