"""Train the bundled model and its draft from nothing, on the processor, in well under an hour.

Run it as `python tools/bundled_model/train.py --out src/quire/bundled`: started so, only this folder is on
Python's path, which is how the scripts find each other (and not the repository's root, whose `kernels` folder
would be taken for a package of that name).

A model trains in two phases: rows of 256 tokens, which are cheap, for most of the way; then rows of the full
context, so that far positions are trained too. The stored weights are bfloat16.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from corpus import END_OF_TEXT, documents
from muon import Muon
from safetensors.torch import save_file
from tokenizer import VOCABULARY_SIZE, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 2048
SHORT = 256
TOKENS_PER_STEP = 2048


@dataclass(frozen=True)
class Plan:
    """The shape of a model and how long it trains."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    short_steps: int
    long_steps: int
    muon_rate: float
    adam_rate: float
    seed: int


MAIN = Plan("quire-tiny", 192, 6, 6, 2, 512, short_steps=950, long_steps=200, muon_rate=0.004, adam_rate=0.004, seed=1)
DRAFT = Plan(
    "quire-tiny-draft", 96, 3, 3, 1, 256, short_steps=1300, long_steps=250, muon_rate=0.008, adam_rate=0.006, seed=2
)


def model_config(plan: Plan, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write a model's config.json with the keys that every Llama reader knows."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": plan.hidden,
        "initializer_range": 0.02,
        "intermediate_size": plan.inner,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": plan.heads,
        "num_hidden_layers": plan.layers,
        "num_key_value_heads": plan.key_value_heads,
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY_SIZE,
    }


def save(model: nn.Module, plan: Plan, tokenizer: Tokenizer, out: Path) -> None:
    """Write the whole model folder, with the weights rounded to bfloat16 and the tied head left out."""
    folder = out / plan.name
    save_tokenizer(tokenizer, folder, CONTEXT)
    config = model_config(plan, tokenizer)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    stops = [tokenizer.token_to_id(token) for token in ("<|im_end|>", END_OF_TEXT)]
    generation = {"eos_token_id": stops, "pad_token_id": stops[1]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def rows(tokenizer: Tokenizer, length: int, seed: int) -> Iterator[list[int]]:
    """Pack documents into rows of one length; each row opens with the start of a document.

    A prompt has nothing before it when it is served, so the first position has to be trained on beginnings.
    The document that runs over the end of a row is cut there, and its rest is dropped. The few texts that are
    longer than a row just fill one.
    """
    stream = documents(seed, long_share=0.35 if length == CONTEXT else 0.0)
    row: list[int] = []
    while batch := list(islice(stream, 256)):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            row += encoding.ids
            if len(row) >= length:
                yield row[:length]
                row = []


def batches(tokenizer: Tokenizer, length: int, seed: int) -> Iterator[Tensor]:
    """Stack rows so that every step sees the same number of tokens, whatever their length."""
    stream = rows(tokenizer, length, seed)
    while True:
        yield torch.tensor(list(islice(stream, TOKENS_PER_STEP // length)))


def rate(step: int, total: int) -> float:
    """A short warm-up, a plateau, and a straight way down to nearly nothing over the second half."""
    return min(1.0, (step + 1) / 40, 0.01 + 1.98 * (1 - step / total))


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The mean cross-entropy of each token after the first in its row."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY_SIZE), tokens[:, 1:].reshape(-1))


def train(plan: Plan, tokenizer: Tokenizer, out: Path, scale: float) -> None:
    """Train one model, saving it now and then so that a usable folder exists early.

    Muon moves the matrices of the layers, Adam the embedding and the norms. That gets about twice as far as
    Adam alone in the same number of steps, and steps are what is scarce here.
    """
    torch.manual_seed(plan.seed)
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**model_config(plan, tokenizer)))
    model.float().train()
    print(f"{plan.name}: {sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    inner = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    outer = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    muon, adam = Muon(inner), torch.optim.Adam(outer, betas=(0.9, 0.98))
    short_steps, long_steps = math.ceil(plan.short_steps * scale), math.ceil(plan.long_steps * scale)
    short, long = batches(tokenizer, SHORT, plan.seed * 1000), batches(tokenizer, CONTEXT, plan.seed * 1000 + 1)
    began, smooth = time.monotonic(), 0.0
    for step in range(short_steps + long_steps):
        loss = loss_of(model, next(short if step < short_steps else long))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = rate(step, short_steps + long_steps)
        adam.param_groups[0]["lr"] = share * plan.adam_rate
        muon.step(share * plan.muon_rate)
        adam.step()
        model.zero_grad()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 19:
            speed = (step + 1) * TOKENS_PER_STEP / (time.monotonic() - began)
            print(f"{plan.name} step {step + 1}: loss {smooth:.4f}, {speed:,.0f} tokens/s", flush=True)
        if step % 300 == 99:
            save(model, plan, tokenizer, out)
    save(model, plan, tokenizer, out)
    model.eval()
    with torch.no_grad():
        for length in (SHORT, CONTEXT):
            fresh = batches(tokenizer, length, seed=9_000_000)
            losses = [loss_of(model, next(fresh)).item() for _ in range(12)]
            print(f"{plan.name}: loss on fresh rows of {length}: {sum(losses) / len(losses):.4f}", flush=True)


def main() -> None:
    """Read the command line, train the tokenizer, then the models asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives both model folders")
    parser.add_argument("--only", choices=("main", "draft"), help="train just this one")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual steps, for a quick try")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = train_tokenizer(seed=0)
    for name, plan in (("main", MAIN), ("draft", DRAFT)):
        if options.only in (None, name):
            train(plan, tokenizer, options.out, options.scale)


if __name__ == "__main__":
    main()
