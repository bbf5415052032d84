"""`quire bench serve`: one run of load against a running server, from settings to report."""

from __future__ import annotations

import asyncio
import gc
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from quire.bench.arrivals import arrival_times
from quire.bench.backends import BenchBackend, open_backend
from quire.bench.load import run_load
from quire.bench.progress import LoadProgress
from quire.bench.prompts import find_vocab_size, random_requests
from quire.bench.report import save_json, serving_table
from quire.bench.settings import ServeBenchSettings
from quire.bench.statistics import details, summarise
from quire.bench.timeline import Timeline
from quire.errors import ServiceUnavailableError

_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 10.0


def bench_serve(settings: ServeBenchSettings) -> dict[str, Any]:
    """Runs the load, prints the report, writes the files asked for; returns the result.

    Raises ServiceUnavailableError if the server does not answer or every request failed, InvalidRequestError if the
    size of the vocabulary is unknown, StartupError if --plot lacks its library.
    """
    if settings.plot is not None:
        from quire.bench.plot import require_matplotlib

        require_matplotlib()
    model, timelines = uvloop.run(_measure(settings))
    result = _describe(settings, model) | summarise(timelines, settings.metrics, settings.percentiles)
    _check(timelines)
    console = Console()
    console.print(serving_table(result, settings.metrics, settings.percentiles))
    if settings.save_result:
        path = settings.result_dir / (settings.result_filename or _file_name(settings, model))
        save_json(path, result | (details(timelines) if settings.save_detailed else {}))
        console.print(f"result: {path}")
    if settings.plot is not None:
        from quire.bench.plot import plot_run

        plot_run(timelines, settings.plot, title=f"{model}, {settings.backend}")
        console.print(f"plot: {settings.plot}")
    return result


async def _measure(settings: ServeBenchSettings) -> tuple[str, list[Timeline]]:
    backend = open_backend(settings, settings.model or "")
    try:
        models = await _wait_ready(backend, settings.ready_check_timeout_sec)
        model = settings.model or models[0]
    finally:
        await backend.close()
    requests = random_requests(settings, settings.vocab_size or find_vocab_size(model))
    warmups, counted = requests[: settings.num_warmups], requests[settings.num_warmups :]
    arrivals = arrival_times(len(counted), settings.request_rate, settings.burstiness, settings.seed)
    backend = open_backend(settings, model)
    try:
        await run_load(
            backend, warmups, [0.0] * len(warmups), settings.max_concurrency, settings.request_timeout, lambda _: None
        )
        # A collection in the middle would show as a token that came late.
        gc.collect()
        gc.freeze()
        with LoadProgress(len(counted), enabled=not settings.disable_tqdm) as progress:
            timelines = await run_load(
                backend, counted, arrivals, settings.max_concurrency, settings.request_timeout, progress.on_done
            )
    finally:
        await backend.close()
    return model, timelines


async def _wait_ready(backend: BenchBackend, timeout_s: float) -> list[str]:
    """The served models, as soon as the server answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await backend.list_models()
        except (ServiceUnavailableError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(f"the server does not answer: {error or 'no reply'}") from error
        await asyncio.sleep(_RETRY_SECONDS)


def _check(timelines: list[Timeline]) -> None:
    """Says why requests failed. Raises ServiceUnavailableError if all did."""
    errors = [timeline.error for timeline in timelines if not timeline.succeeded]
    if len(errors) == len(timelines):
        raise ServiceUnavailableError(f"every request failed; the first: {errors[0]}")
    if errors:
        Console(stderr=True).print(f"[red]{len(errors)} requests failed; the first: {errors[0]}")


def _describe(settings: ServeBenchSettings, model: str) -> dict[str, Any]:
    """The run, by vLLM's keys; an infinite rate is the string "inf", as there."""
    finite = settings.request_rate < float("inf")
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": settings.backend,
        "model_id": model,
        "num_prompts": settings.num_prompts,
        "request_rate": settings.request_rate if finite else "inf",
        "burstiness": settings.burstiness,
        "max_concurrency": settings.max_concurrency,
        "random_input_len": settings.random_input_len,
        "random_output_len": settings.random_output_len,
        "random_prefix_len": settings.random_prefix_len,
        "seed": settings.seed,
    }


def _file_name(settings: ServeBenchSettings, model: str) -> str:
    concurrency = f"-concurrency{settings.max_concurrency}" if settings.max_concurrency else ""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{settings.backend}-{settings.request_rate:g}qps{concurrency}-{Path(model).name}-{now}.json"
