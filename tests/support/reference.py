"""What transformers generates, and whether that is a fair thing to compare with token for token."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

# Matrix products of different shapes may differ in the last bits; where the two best tokens are further apart than
# this, greedy decoding must agree.
MIN_MARGIN = 1e-3


@dataclass(frozen=True)
class Case:
    """A prompt with its greedy continuation."""

    prompt: list[int]
    output: list[int]


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], max_tokens: int) -> tuple[list[int], float]:
    """The greedy continuation and the smallest distance between its best and second best logit."""
    torch.set_num_threads(1)  # models this small only wait for a second thread
    cache, token_ids, margin = None, list(prompt), float("inf")
    new = prompt
    for _ in range(max_tokens):
        result = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best, second = torch.topk(result.logits[0, -1].float(), 2).values.tolist()
        margin = min(margin, best - second)
        new = [int(result.logits[0, -1].argmax())]
        token_ids += new
    return token_ids[len(prompt) :], margin


def greedy_cases(
    model: Any, lengths: list[int], max_tokens: int, *, seed: int, vocab_size: int, shared: int = 0
) -> list[Case]:
    """One case per length, of random token ids (the first `shared` the same); close calls are drawn again."""
    draw = random.Random(seed)
    prefix = [draw.randrange(vocab_size) for _ in range(shared)]
    cases = []
    for length in lengths:
        for _ in range(20):
            prompt = (prefix + [draw.randrange(vocab_size) for _ in range(max(length - shared, 1))])[-max(length, 1) :]
            output, margin = greedy(model, prompt, max_tokens)
            if margin > MIN_MARGIN:
                cases.append(Case(prompt, output))
                break
        else:
            raise AssertionError("no prompt with a clear greedy continuation was found")
    return cases
