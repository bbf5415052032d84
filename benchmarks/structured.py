"""Decoding with a grammar on every request against free text.

    PYTHONPATH=benchmarks .venv/bin/python -P benchmarks/structured.py

The physics. A grammar costs a step three things. Its parser takes in the token that was sampled, and walks the
vocabulary's trie for the tokens that may come next (tens of microseconds for each sequence); both run in a thread
beside the forward pass, so they cost time only where they take longer than that or where it has no core to spare. The
sampler tests one bit per token of the vocabulary. And the logits leave the native step, [rows, vocab] float32, to be
sampled once the masks are there: one write and one read of 4 * vocab bytes for each row, in a cache.

The comparison. A whole engine (scheduler and executor processes) generates 16 continuations of random prompts at
once, of equal length in both cases: the free ones ignore the end of sequence, the grammar is an array of objects that
is never long enough to end. The two cases alternate; a round's ratio compares neighbours in time, and the median over
rounds is reported. Prompts and the first, untimed round (which compiles) count as little as they would in service.

The last line is JSON: tokens per second of both, the ratio structured / free (the median of the rounds') and its range.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.checkpoints import SHAPES, make_checkpoint

from quire import LLM, SamplingParams
from quire.structured_outputs import StructuredOutputs

PROMPT_TOKENS = 32
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99999},
        "name": {"type": "string", "minLength": 1, "maxLength": 24},
        "kind": {"enum": ["person", "place", "thing"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,8}$"}, "maxItems": 4},
        "score": {"type": "number"},
    },
    "required": ["id", "name", "kind", "tags", "score"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {"type": "array", "items": RECORD, "minItems": 10_000}


def params(case: str, seed: int, num_tokens: int) -> SamplingParams:
    """Of one request."""
    outputs = StructuredOutputs(json=SCHEMA) if case == "structured" else None
    return SamplingParams(
        temperature=0.8, seed=seed, max_tokens=num_tokens, ignore_eos=True, structured_outputs=outputs
    )


def tokens_per_second(llm: LLM, case: str, prompts: list[list[int]], num_tokens: int) -> float:
    """Of all sequences together. Raises AssertionError if one ended early."""
    wanted = [params(case, seed, num_tokens) for seed in range(len(prompts))]
    started = time.perf_counter()
    outputs = llm.generate(prompts, wanted)
    elapsed = time.perf_counter() - started
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert counts == [num_tokens] * len(prompts), f"a sequence ended early: {counts}"
    return sum(counts) / elapsed


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Decoding with a grammar against free text.")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm-135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, help="where the random checkpoint is kept (default: nowhere)")
    options = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        model = make_checkpoint(options.shape, options.checkpoints or Path(scratch))
        vocab_size = SHAPES[options.shape].vocab_size
        prompts = [[draw.randrange(vocab_size - 1) for _ in range(PROMPT_TOKENS)] for _ in range(options.batch)]
        rates: dict[str, list[float]] = {"free": [], "structured": []}
        with LLM(str(model), kv_cache_memory="512MiB") as llm:
            for round_ in range(options.rounds + 1):
                for case, measured in rates.items():
                    rate = tokens_per_second(llm, case, prompts, options.tokens)
                    if round_:
                        measured.append(rate)
                        print(f"round {round_}, {case}: {rate:.0f} tokens/s")
    ratios = [structured / free for structured, free in zip(rates["structured"], rates["free"], strict=True)]
    print(f"structured / free: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    summary = {case: round(statistics.median(measured), 1) for case, measured in rates.items()}
    print(
        json.dumps(
            {
                "shape": options.shape,
                "batch": options.batch,
                **{f"{case}_tokens_per_second": rate for case, rate in summary.items()},
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        )
    )


if __name__ == "__main__":
    main()
