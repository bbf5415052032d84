"""A byte-level tokenizer with a chat template, built in a moment, as a checkpoint folder without weights."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "The capital of France is Paris. The capital of Japan is Tokyo.",
    "hello world, hello stop strings over token borders",
    "one two three four five six seven eight nine ten",
    "naïve café 😀 日本語",
]
SPECIAL_TOKENS = ["<|end|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' and loop.first %}"
    "{{ raise_exception('a chat cannot begin with the assistant') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train() -> Tokenizer:
    """All bytes, some merges, three special tokens and an added one that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<é not special>", special=False)])
    return tokenizer


def save(folder: Path) -> Tokenizer:
    """Writes what a gateway reads of a checkpoint; <|end|> and <|im_end|> end a sequence."""
    tokenizer = train()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ends = [tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|im_end|>")]
    generation = {"eos_token_id": ends, "temperature": 0.75, "top_k": 40}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return tokenizer
