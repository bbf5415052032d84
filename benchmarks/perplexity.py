"""Perplexity of the bundled model in every weight and cache format: `python -P benchmarks/perplexity.py`.

What is measured. exp of the mean negative log-likelihood of each token given those before it, over rows of fresh text
from the generator of the model's training text (tools/bundled_model/corpus.py, a seed that training did not use). The
same rows and the same forward pass for every format; float32 is the reference, since it holds the bfloat16 checkpoint
exactly and rounds least. A format's rounding shows as the ratio of its perplexity to bfloat16's. The model is small
(2.8 million parameters, hidden size 192), and small models suffer more from rounding than large ones do.

The last line is JSON: perplexity by format.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from quire.config import BUNDLED_MODEL, ExecutorSettings
from quire.executor.input_batch import BatchArrays, InputBatch
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model, load_model

SEED = 77_000_000
BLOCK_SIZE = 16

#: name: settings of the executor.
FORMATS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {},
    "bfloat16, KV cache int8": {"kv_cache_dtype": "int8"},
    "int8": {"quantization": "int8"},
    "int8_weight_only": {"quantization": "int8_weight_only"},
    "int4": {"quantization": "int4"},
    "int4, KV cache int8": {"quantization": "int4", "kv_cache_dtype": "int8"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Perplexity of the bundled model by format.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--row-tokens", type=int, default=512)
    options = parser.parse_args()
    rows = list(fresh_rows(options.rows, options.row_tokens))
    results = {}
    for name, settings in FORMATS.items():
        values = {"model": str(BUNDLED_MODEL), "device": "cpu", "listen": "-", **settings}
        model = load_model(ExecutorSettings.load(values))
        results[name] = math.exp(np.mean([negative_log_likelihoods(model, row) for row in rows]))
        relative = results[name] / results.get("bfloat16", results[name])
        print(f"{name}: {results[name]:.4f}, {relative:.4f} times bfloat16's", flush=True)
    print(json.dumps({"tokens": options.rows * (options.row_tokens - 1), "perplexity": results}))


def fresh_rows(count: int, length: int) -> Iterator[list[int]]:
    """Token ids [length] from documents put behind one another."""
    # The generator's modules find each other as top-level ones; see its README.
    sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "bundled_model"))
    from corpus import documents

    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL / "tokenizer.json"))
    pending: list[int] = []
    for text in documents(SEED):
        pending += tokenizer.encode(text).ids
        while len(pending) >= length:
            yield pending[:length]
            pending = pending[length:]
            count -= 1
            if count == 0:
                return


def negative_log_likelihoods(model: Model, row: list[int]) -> np.ndarray:
    """float64 [len(row) - 1], of every token but the first."""
    num_blocks = -(-len(row) // BLOCK_SIZE)
    cache = KvCache.allocate(num_blocks, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
    positions = np.arange(len(row), dtype=np.int32)
    arrays = BatchArrays(
        token_ids=np.array(row, np.int32),
        positions=positions,
        rotary_lengths=None,
        query_start=np.array([0, len(row)], np.int32),
        context_lens=np.array([len(row)], np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None],
        slot_mapping=positions.astype(np.int64),
        logit_rows=positions[:-1].copy(),
    )
    logits = model.decoder.forward(InputBatch(arrays, model.device, np.array([0])), cache)
    chosen = torch.log_softmax(logits.double(), dim=-1)[torch.arange(len(row) - 1), torch.tensor(row[1:])]
    return -chosen.numpy()


if __name__ == "__main__":
    main()
