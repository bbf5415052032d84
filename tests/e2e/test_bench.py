"""`quire bench` against real processes, with few requests."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from quire.cli import app

RUNNER = CliRunner()


def _bench(*arguments: str) -> str:
    run = RUNNER.invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.output


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "grpc"])
def test_every_backend_counts_every_token(server, tmp_path, backend):
    url = server.grpc_address if backend == "grpc" else server.url
    _bench(
        "serve", "--backend", backend, "--base-url", url, "--num-prompts", "6", "--max-concurrency", "3",
        "--random-input-len", "20", "--random-output-len", "9", "--ignore-eos", "--save-result", "--save-detailed",
        "--result-dir", str(tmp_path), "--result-filename", "run.json", "--metric-percentiles", "50,99",
    )  # fmt: skip
    result = json.loads((tmp_path / "run.json").read_text())
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["model_id"] == "quire-tiny"
    assert result["request_rate"] == "inf"
    assert result["total_output_tokens"] == 6 * 9
    assert result["output_lens"] == [9] * 6
    assert 1 <= result["max_concurrent_requests"] <= 3
    assert 0 < result["p50_ttft_ms"] <= result["p99_ttft_ms"]
    if backend != "openai-chat":
        assert result["total_input_tokens"] == 6 * 20


def test_a_shared_prefix_is_found_in_the_cache(server, tmp_path):
    _bench(
        "serve", "--base-url", server.url, "--num-prompts", "4", "--max-concurrency", "1", "--random-prefix-len", "64",
        "--random-input-len", "8", "--random-output-len", "2", "--ignore-eos", "--save-result", "--seed", "7",
        "--result-filename", str(tmp_path / "run.json"),
    )  # fmt: skip
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["total_cached_tokens"] == 3 * 64


@pytest.mark.slow
def test_offline_throughput_and_latency(tmp_path):
    lengths = ["--input-len", "8", "--output-len", "4", "--kv-cache-memory", "16MiB"]
    _bench("throughput", *lengths, "--num-prompts", "5", "--output-json", str(tmp_path / "t.json"))
    throughput = json.loads((tmp_path / "t.json").read_text())
    assert throughput["num_requests"] == 5
    assert throughput["total_num_tokens"] == 5 * (8 + 4)
    _bench(
        "latency", *lengths, "--batch-size", "2", "--num-iters", "3", "--num-iters-warmup", "1",
        "--output-json", str(tmp_path / "l.json"),
    )  # fmt: skip
    latency = json.loads((tmp_path / "l.json").read_text())
    assert len(latency["latencies"]) == 3
    assert latency["percentiles"]["10"] <= latency["avg_latency"] <= latency["percentiles"]["99"]
