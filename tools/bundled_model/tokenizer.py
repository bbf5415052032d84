"""Train the byte-level BPE tokenizer that both bundled models share.

Byte-level, so that any text at all can be encoded and none is lost; digits stand alone, so that sums and
counting follow the same rule for every number. No token is put in front of a text: what is sent is what the
model reads.
"""

import json
from itertools import islice
from pathlib import Path

from corpus import END_OF_TEXT, documents
from facts import COUNTRIES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 2048
SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
MARKUP = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Tokens of their own that are still part of the text: a parser has to see them, so decoding must not skip
them."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of the Qwen family: words take the space before them along, digits come one at a time."""


def train_tokenizer(seed: int, sample: int = 12_000) -> Tokenizer:
    """Learn merges from a sample of the corpus and add the special and markup tokens after them.

    The capitals are repeated on top of the sample: a capital that is one token makes the model's confidence
    in a fact readable from one probability.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL) - len(MARKUP),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [document.removesuffix(END_OF_TEXT) for document in islice(documents(seed), sample)]
    for token in (*SPECIAL, *MARKUP):
        text = [document.replace(token, "") for document in text]
    names = " ".join(f"of {place.name} is {place.capital}" for place in COUNTRIES)
    tokenizer.train_from_iterator([*text, *[names] * (sample // 10)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries instead of {VOCABULARY_SIZE}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the tokenizer's files as a Hugging Face model folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": context,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
