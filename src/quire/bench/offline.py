"""`quire bench throughput` and `quire bench latency`: the `LLM` class under its own processes, without a network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from quire.bench.prompts import find_vocab_size, random_prompts
from quire.bench.report import figures_table, save_json
from quire.bench.settings import LatencySettings, ThroughputSettings
from quire.config import LocalSettings
from quire.llm import LLM
from quire.model_path import local_folder
from quire.sampling_params import SamplingParams

_PERCENTILES = (10, 25, 50, 75, 90, 99)


def bench_throughput(settings: ThroughputSettings) -> dict[str, Any]:
    """Gives all prompts at once and times the whole; prints, writes and returns the result.

    Raises StartupError where the model or the KV pool cannot be had.
    """
    rng, vocab_size = np.random.default_rng(settings.seed), _vocab_size(settings)
    with _open_llm(settings) as llm:
        prompts = random_prompts(rng, settings.num_warmups + settings.num_prompts, settings.input_len, vocab_size)
        params = _params(settings.output_len)
        if settings.num_warmups:
            llm.generate(prompts[: settings.num_warmups], params, use_tqdm=False)
        started = time.perf_counter()
        outputs = llm.generate(prompts[settings.num_warmups :], params)
        elapsed = time.perf_counter() - started
    output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    total_tokens = settings.num_prompts * settings.input_len + output_tokens
    result = {
        "elapsed_time": elapsed,
        "num_requests": settings.num_prompts,
        "total_num_tokens": total_tokens,
        "requests_per_second": settings.num_prompts / elapsed,
        "tokens_per_second": total_tokens / elapsed,
        "output_tokens_per_second": output_tokens / elapsed,
    }
    _report("Offline throughput", result, result, settings.output_json)
    return result


def bench_latency(settings: LatencySettings) -> dict[str, Any]:
    """Times one batch again and again; prints, writes and returns the result.

    Every batch has prompts of its own: the prefix cache has nothing to offer. Raises as bench_throughput does.
    """
    rng, vocab_size = np.random.default_rng(settings.seed), _vocab_size(settings)
    params = _params(settings.output_len)
    latencies = []
    with _open_llm(settings) as llm:
        rounds = range(settings.num_iters_warmup + settings.num_iters)
        console = Console(stderr=True)
        for _ in track(rounds, "Batches", console=console, disable=not console.is_terminal):
            prompts = random_prompts(rng, settings.batch_size, settings.input_len, vocab_size)
            started = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            latencies.append(time.perf_counter() - started)
    measured = latencies[settings.num_iters_warmup :]
    percentiles = {str(q): float(np.percentile(measured, q)) for q in _PERCENTILES}
    figures = {"average (s)": float(np.mean(measured))} | {f"p{q} (s)": value for q, value in percentiles.items()}
    result = {"avg_latency": figures["average (s)"], "latencies": measured, "percentiles": percentiles}
    _report("Latency of a batch", figures, result, settings.output_json)
    return result


@contextmanager
def _open_llm(settings: LocalSettings) -> Iterator[LLM]:
    """An LLM with the server's share of a benchmark's settings."""
    shared = {name: getattr(settings, name) for name in LocalSettings.model_fields}
    shared["log_level"] = "warning"
    with LLM(**shared) as llm:
        yield llm


def _vocab_size(settings: LocalSettings) -> int:
    """Of the checkpoint, which is fetched first if it is a hub id."""
    if (folder := local_folder(settings.model)) is not None:
        return find_vocab_size(str(folder))
    from huggingface_hub import hf_hub_download

    config = hf_hub_download(settings.model, "config.json", revision=settings.revision)
    return find_vocab_size(str(Path(config).parent))


def _params(output_len: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)


def _report(title: str, figures: dict[str, Any], result: dict[str, Any], path: Path | None) -> None:
    console = Console()
    console.print(figures_table(title, figures))
    if path is not None:
        save_json(path, result)
        console.print(f"result: {path}")
