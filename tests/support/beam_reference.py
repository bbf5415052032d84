"""What transformers' beam search finds, in float32, where float64 finds the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from quire import SamplingParams


@dataclass(frozen=True)
class BeamCase:
    """A search, and its hypotheses with their cumulative logprobs, best first."""

    prompt: list[int]
    params: SamplingParams
    outputs: list[list[int]]
    logprobs: list[float]


@torch.inference_mode()
def search(model: Any, prompt: Sequence[int], params: SamplingParams) -> tuple[list[list[int]], list[float]]:
    """`params.stop_token_ids` are the only tokens that end a hypothesis."""
    torch.set_num_threads(1)  # models this small only wait for a second thread
    ending = list(params.stop_token_ids or ())
    config = GenerationConfig(
        num_beams=params.best_of,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        do_sample=False,
        eos_token_id=ending or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    # It fills what the config above leaves open, such as the end-of-sequence tokens.
    model.generation_config = GenerationConfig()
    inputs = torch.tensor([list(prompt)])
    found = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    outputs = [_cut(sequence[len(prompt) :].tolist(), ending, params) for sequence in found.sequences]
    scores = found.sequences_scores.tolist()
    penalty = params.length_penalty or 0.0
    return outputs, [score * len(output) ** penalty for score, output in zip(scores, outputs, strict=True)]


def _cut(padded: list[int], ending: list[int], params: SamplingParams) -> list[int]:
    """What follows the token that ended it is padding."""
    ends = [i for i, token_id in enumerate(padded) if token_id in ending and i >= (params.min_tokens or 0)]
    return padded[: ends[0] + 1] if ends else padded


def beam_cases(
    model: Any, exact: Any, settings: Sequence[dict[str, Any]], *, seed: int, vocab_size: int
) -> list[BeamCase]:
    """One case for each of `settings`; prompts with close calls are drawn again.

    Args:
        model: transformers' model in float32.
        exact: the same in float64.
        settings: fields of SamplingParams, `length` (of the prompt) and `ends` (how many tokens end a hypothesis:
            some that the search finds likely).
        seed: of the prompts.
        vocab_size: their token ids are below it.
    """
    draw = random.Random(seed)
    cases = []
    for setting in settings:
        fields = {"best_of": 3, "n": 2, "max_tokens": 8, "length_penalty": 1.0, "early_stopping": False, **setting}
        length, num_ends = fields.pop("length"), fields.pop("ends")
        for _ in range(20):
            prompt = [draw.randrange(vocab_size) for _ in range(length)]
            params = SamplingParams(use_beam_search=True, ignore_eos=True, **fields)
            if num_ends:
                found, _ = search(model, prompt, params)
                likely = sorted({token_id for output in found for token_id in output[1::3]})
                ends = sorted(draw.sample(likely, min(num_ends, len(likely))))
                params = SamplingParams(use_beam_search=True, ignore_eos=True, stop_token_ids=ends, **fields)
            outputs, logprobs = search(model, prompt, params)
            if search(exact, prompt, params)[0] == outputs:
                cases.append(BeamCase(prompt, params, outputs, logprobs))
                break
        else:
            raise AssertionError("no prompt without close calls was found")
    return cases
