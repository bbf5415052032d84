"""Random requests: token ids drawn uniformly, so that no server knows a prompt from before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quire.bench.settings import WorkloadOptions
from quire.config import BUNDLED_MODEL
from quire.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: a prompt in token ids, and how many tokens to ask for."""

    prompt: list[int]
    output_len: int


def random_requests(options: WorkloadOptions, vocab_size: int) -> list[BenchRequest]:
    """The warm-up requests and then the counted ones; the same seed and options give the same.

    The shared prefix does not begin the warm-ups, which would put it into the server's cache.
    """
    rng = np.random.default_rng(options.seed)
    (prefix,) = random_prompts(rng, 1, options.random_prefix_len, vocab_size)
    whole_len = options.random_prefix_len + options.random_input_len
    warmups = [
        BenchRequest(prompt, options.random_output_len)
        for prompt in random_prompts(rng, options.num_warmups, whole_len, vocab_size)
    ]
    input_lens = _lengths(rng, options.random_input_len, options)
    output_lens = _lengths(rng, options.random_output_len, options)
    counted = [
        BenchRequest(prefix + random_prompts(rng, 1, input_len, vocab_size)[0], output_len)
        for input_len, output_len in zip(input_lens, output_lens, strict=True)
    ]
    return warmups + counted


def random_prompts(rng: np.random.Generator, count: int, length: int, vocab_size: int) -> list[list[int]]:
    """`count` prompts of `length` token ids in [0, vocab_size)."""
    prompts: list[list[int]] = rng.integers(vocab_size, size=(count, length)).tolist()
    return prompts


def find_vocab_size(model: str) -> int:
    """The vocabulary of a checkpoint in a folder, or of the bundled model. Raises InvalidRequestError."""
    config = (BUNDLED_MODEL if model == BUNDLED_MODEL.name else Path(model)) / "config.json"
    if not config.is_file():
        raise InvalidRequestError(f"{model!r} is no folder with a config.json: give --vocab-size", field="vocab_size")
    return int(json.loads(config.read_text())["vocab_size"])


def _lengths(rng: np.random.Generator, length: int, options: WorkloadOptions) -> list[int]:
    low = max(1, int(length * (1 - options.random_range_ratio)))
    high = max(low, int(np.ceil(length * (1 + options.random_range_ratio))))
    lengths: list[int] = rng.integers(low, high, size=options.num_prompts, endpoint=True).tolist()
    return lengths
